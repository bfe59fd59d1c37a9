"""One row of `hybridiff bench`: a process that makes a picture whenever it is told to.

A process of its own has an empty compile cache and a peak of memory that is its own. It waits for
its turn without using its processor, so that rows can be measured in turn.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from hybridiff_compile import lower, optimize
from hybridiff_compile.bench import compile_row, models, ranks
from hybridiff_compile.bench.compile_row import PROMPT
from hybridiff_compile.bench.figures import Backend, Mode, Scope
from hybridiff_compile.bench.measure import Contender, Made, make, one_thread
from hybridiff_compile.errors import HybridiffError

_MEGABYTE = 1e6
_LAST_CHARACTERS, _LAST_SECONDS = 4000, 10


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes:
        model: one of `models.NAMES`, or the folder of a pipeline.
        mode, backend, scope: as in the figures.
        call: keywords of the pipeline's calls, without prompt and seed.
        cache: folder for Inductor's caches, empty.
    """

    model: str
    mode: Mode
    backend: Backend
    scope: Scope | None
    call: Mapping[str, Any]
    cache: Path


class Entrant:
    """A row's process, seen from the command.

    Attributes:
        scheduler: class name of its pipeline's scheduler.
        ready_seconds: until it could make its first picture; None where nothing was prepared.
    """

    def __init__(self, job: Job, connection: Connection, process: BaseProcess) -> None:
        self.job = job
        self._connection, self._process = connection, process
        self.scheduler, self.ready_seconds = self._answer()

    def make(self, seed: int) -> Made:
        """Make the picture of a seed.

        Raises:
            HybridiffError: it failed.
        """
        self._connection.send(seed)
        return self._answer()

    def totals(self) -> dict[str, Any]:
        """What its processes took so far, as keys of a row of figures."""
        self._connection.send(None)
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, OSError) as e:
            self._process.join(5)
            answer = f"it ended with exit code {self._process.exitcode} ({type(e).__name__})"
        if isinstance(answer, str):
            raise HybridiffError(
                f"{self.job.model}, mode {self.job.mode}, backend {self.job.backend}: the process "
                f"that measures it failed; see what it said last, and run again:\n{answer}"
            )
        return answer


@contextmanager
def entered(job: Job) -> Iterator[Entrant]:
    """Start a row's process and wait until it is ready; it ends with the block.

    Raises:
        HybridiffError: it failed.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(job, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Entrant(job, ours, process)
        ours.close()  # end of file ends it
        process.join(_LAST_SECONDS)
    finally:
        ours.close()
        process.kill()  # its own worker ends with it
        process.join()


def serve(job: Job, connection: Connection) -> None:
    """Answer an `Entrant`: the process's own side."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(job.cache)
    threading.Thread(target=_end_with_the_command, daemon=True).start()
    try:
        with one_thread(), opened(job) as ready:
            watch, before = ranks.Watch(ready.pids), sum(ready.compilations())
            connection.send((ready.contender.scheduler, ready.seconds))
            while True:
                seed = connection.recv()
                if seed is not None:
                    connection.send(make(ready.contender, PROMPT, seed, **job.call))
                    continue
                watch.look()
                found: dict[str, Any] = {
                    "peak_rss_mb": [b / _MEGABYTE for b in watch.peak_rss()],
                    "peak_pss_mb": [b / _MEGABYTE for b in watch.peak_pss],
                }
                if job.backend != "eager":
                    found["recompiles"] = sum(ready.compilations()) - before
                connection.send(found)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
    except Exception:
        connection.send(traceback.format_exc()[-_LAST_CHARACTERS:])


def _end_with_the_command() -> None:
    """A command that was killed is not waited for in the midst of a picture or a compilation."""
    command = multiprocessing.parent_process()
    if command is not None:
        command.join()
        os._exit(1)


@dataclass(frozen=True)
class Ready:
    """A contender that could make its first picture now.

    Attributes:
        contender: it.
        seconds: how long that took; None where nothing was prepared.
        pids: of its ranks.
        compilations: graphs that each rank has compiled so far.
    """

    contender: Contender
    seconds: float | None
    pids: list[int]
    compilations: Callable[[], list[int]]


@contextmanager
def opened(job: Job) -> Iterator[Ready]:
    """Load a job's pipeline and prepare it; it is restored at the end."""
    known = job.model in models.NAMES
    pipe: Any = models.load(job.model) if known else models.load_folder(Path(job.model))
    pipe.set_progress_bar_config(disable=True)
    scheduler, own = type(pipe.scheduler).__name__, ranks.own_pid()

    def compiled_here() -> list[int]:
        return [lower.compilations()]

    if job.mode == "one-device":
        timed = compile_row.timed_denoiser(pipe, job.backend)
        contender, seconds = Contender(job.mode, scheduler, pipe), None
        if job.backend != "eager":
            make(contender, PROMPT, 0, **job.call)
            seconds = compile_row.compiling_seconds(timed)
        yield Ready(contender, seconds, [own], compiled_here)
        return
    how: dict[str, Any] = {"mode": job.mode, "backend": job.backend}
    if job.scope is not None:
        how["scope"] = job.scope
    if job.mode == "one-device-apart":
        how = {"gpus": 1, "mode": "exact"}
    with optimize(pipe, **how) as model:
        contender = Contender(job.mode, scheduler, model, lambda: model.report)
        if job.mode == "one-device-apart":
            yield Ready(contender, None, [own], compiled_here)
            return
        begin = time.perf_counter()
        model.compile(progress=False, **job.call)
        seconds = time.perf_counter() - begin
        pids = [own, ranks.worker_pid(model)]
        yield Ready(contender, seconds, pids, lambda: ranks.compilations(model))
