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
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from hybridiff_compile.bench import command
from hybridiff_compile.bench.measure import Made, make, one_thread
from hybridiff_compile.bench.ready import PROMPT, Job, opened
from hybridiff_compile.errors import HybridiffError

_LAST_CHARACTERS, _LAST_SECONDS = 4000, 10


class Entrant:
    """A row's process, seen from the command.

    Attributes:
        job: what it measures.
        scheduler: class name of its pipeline's scheduler.
        taken: see `Ready.taken`; empty before its first picture.
    """

    def __init__(self, job: Job, connection: Connection, process: BaseProcess) -> None:
        self.job = job
        self._connection, self._process = connection, process
        self.taken: dict[str, Any] = {}
        self.scheduler: str = self._answer()

    def make(self, seed: int) -> Made:
        """Make the picture of a seed.

        Raises:
            HybridiffError: it failed.
        """
        self._connection.send(seed)
        made, self.taken = self._answer()
        return made

    def _answer(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, OSError) as e:
            self._process.join(5)
            code = self._process.exitcode
            answer = HybridiffError(f"it ended with exit code {code} ({type(e).__name__})")
        if isinstance(answer, HybridiffError):
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
            connection.send(ready.contender.scheduler)
            watch, first = ready.watch(), None
            while True:
                made = make(ready.contender, PROMPT, connection.recv(), **job.call)
                watch.look()
                first = first or made.seconds
                answer = pickle.dumps((made, ready.taken(watch, first)))
                # `send` would share a tensor's memory by a socket, whose path may be too long.
                connection.send_bytes(answer)
    except (EOFError, BrokenPipeError):
        return
    except Exception:
        connection.send(HybridiffError(traceback.format_exc()[-_LAST_CHARACTERS:]))


def _end_with_the_command() -> None:
    """A command that was killed is not waited for in the midst of a picture or a compilation."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
