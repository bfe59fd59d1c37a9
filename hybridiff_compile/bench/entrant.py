"""One row of a benchmark: a process that makes a picture whenever it is told to.

A process of its own has an empty compile cache and a peak of memory that is its own. It waits for
its turn without using its processor, so that rows can be measured in turn.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from statistics import median
from typing import Any

from hybridiff_compile.bench import command, ranks
from hybridiff_compile.bench.measure import Made, make, one_thread
from hybridiff_compile.bench.ready import PROMPT, Job, Ready, opened
from hybridiff_compile.errors import HybridiffError

_LAST_CHARACTERS, _LAST_SECONDS = 4000, 10


@dataclass(frozen=True)
class Totals:
    """What a row's processes took so far.

    Attributes:
        peak_rss_mb, peak_pss_mb, graphs, recompiles: as in the figures.
        first_picture_seconds: from a loaded pipeline to its first picture, waiting aside.
        denoiser_ms: median of one device's denoiser calls after the first; None on two ranks.
    """

    peak_rss_mb: tuple[float, ...]
    peak_pss_mb: tuple[float, ...]
    graphs: tuple[int, ...]
    recompiles: int
    first_picture_seconds: float
    denoiser_ms: float | None


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

    def totals(self) -> Totals:
        """What its processes took so far; a picture was made before."""
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


#: Starts the process of a row.
Start = Callable[[Job], Any]


@contextmanager
def entered(job: Job) -> Iterator[Entrant]:
    """Start a row's process and wait until it is ready; it ends with the block.

    Raises:
        HybridiffError: it failed.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(job, theirs), daemon=True)
    # A terminal sends Ctrl-C to all processes. The command alone acts on it, and ends the others.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    try:
        yield Entrant(job, ours, process)
        ours.close()  # end of file ends it
        process.join(_LAST_SECONDS)
    finally:
        ours.close()
        if process.is_alive():
            process.terminate()  # it closes what it opened
            process.join(_LAST_SECONDS)
        process.kill()  # its own worker ends with it
        process.join()


def serve(job: Job, connection: Connection) -> None:
    """Answer an `Entrant`: the process's own side."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(job.cache)
    job.cache.mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = str(job.cache)  # a compiler that is killed leaves its files there
    threading.Thread(target=_end_with_the_command, daemon=True).start()
    try:
        with command.ended_cleanly(), one_thread(), opened(job) as ready:
            connection.send((ready.contender.scheduler, ready.seconds))
            _answer(job, ready, connection)
    except (EOFError, BrokenPipeError):
        return
    except Exception:
        connection.send(traceback.format_exc()[-_LAST_CHARACTERS:])


def _answer(job: Job, ready: Ready, connection: Connection) -> None:
    watch, first = ranks.Watch(ready.pids), ready.first_picture_seconds
    while True:
        seed = connection.recv()
        if seed is None:
            connection.send(_totals(ready, watch, first or 0.0))
            continue
        made = make(ready.contender, PROMPT, seed, **job.call)
        first = ready.preparing_seconds + made.seconds if first is None else first
        watch.look()
        # As bytes: `send` would share a tensor's memory by a socket, whose path may be too long.
        connection.send_bytes(pickle.dumps(made))


def _totals(ready: Ready, watch: ranks.Watch, first: float) -> Totals:
    seconds = ready.timed.seconds if ready.timed else ()
    return Totals(
        peak_rss_mb=tuple(b / 1e6 for b in watch.peak_rss()),
        peak_pss_mb=tuple(b / 1e6 for b in watch.peak_pss),
        graphs=ready.graphs,
        recompiles=sum(ready.compilations()) - ready.compiled,
        first_picture_seconds=first,
        denoiser_ms=1000 * median(seconds[1:]) if seconds else None,
    )


def _end_with_the_command() -> None:
    """A command that was killed is not waited for in the midst of a picture or a compilation."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
