"""Functions in processes of their own, for `coverage.py`: a crash or a hang costs one of them."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from suite_run import StoppedError

_LAST_SECONDS = 10  # until a process that has said all must be gone
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
    stop: threading.Event,
    log: Path,
    function: Callable[..., Iterable[Any]],
    *arguments: Any,
) -> tuple[list[Any], str]:
    """Run a function in a process of its own.

    Args:
        context: that starts it.
        seconds: that it may take.
        stop: set by another thread, ends it.
        log: what it prints is added there.
        function: whose items are wanted.
        arguments: of it.

    Returns:
        The items that it gave, and what ended it before all were there, or "".

    Raises:
        StoppedError: `stop` was set.
    """
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs, log, function, arguments))
    process.start()
    theirs.close()
    end, items = time.monotonic() + seconds, []
    try:
        while time.monotonic() < end:
            if stop.is_set():
                raise StoppedError
            if ours.poll(0.2):
                item, error = ours.recv()
                if error:
                    return items, error
                items.append(item)
        return items, f"it took longer than {seconds:g} s"
    except EOFError:
        process.join(_LAST_SECONDS)
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
    except BaseException as e:  # pytest's "skip this", too
        pipe.send((None, f"{type(e).__name__}: {e}"))
    pipe.close()
