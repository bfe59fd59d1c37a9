"""Functions in processes of their own, for `coverage.py`: a crash or a hang costs one of them."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

#: What processes have imported before they begin.
_IMPORTED = ["coverage_modes", "tests.pipelines.test_pipelines_common"]


def prepare(checkout: Path, hub: Path) -> ForkServerContext:
    """What starts the processes; this process's environment becomes theirs.

    Args:
        checkout: of diffusers; its tests become importable.
        hub: Hugging Face home with the stand-ins.
    """
    if str(checkout) not in sys.path:
        sys.path.append(str(checkout))  # last: only its tests are wanted
    os.environ.update(
        PYTHONPATH=os.pathsep.join(filter(None, sys.path)),
        HF_HOME=str(hub),
        HF_HUB_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
        OMP_NUM_THREADS="1",
        MKL_NUM_THREADS="1",
    )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context


def run(
    context: ForkServerContext,
    seconds: float,
    log: Path,
    function: Callable[..., Iterable[Any]],
    *arguments: Any,
) -> tuple[list[Any], str]:
    """Run a function in a process of its own.

    Args:
        context: that starts it.
        seconds: that it may take.
        log: what it prints is added there.
        function: whose items are wanted.
        arguments: of it.

    Returns:
        The items that it gave, and what ended it before all were there, or "".
    """
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs, log, function, arguments))
    process.start()
    theirs.close()
    end, items = time.monotonic() + seconds, []
    try:
        while ours.poll(max(0.0, end - time.monotonic())):
            item, error = ours.recv()
            if error:
                return items, error
            items.append(item)
        return items, f"it took longer than {seconds:g} s"
    except EOFError:
        process.join()
        code = process.exitcode
        return items, f"its process ended with {code}" if code else ""
    finally:
        process.kill()
        process.join()


def _serve(
    pipe: Connection, log: Path, function: Callable[..., Iterable[Any]], arguments: Any
) -> None:
    with log.open("ab") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    try:
        for item in function(*arguments):
            pipe.send((item, ""))
    except Exception as e:
        pipe.send((None, f"{type(e).__name__}: {e}"))
    pipe.close()
