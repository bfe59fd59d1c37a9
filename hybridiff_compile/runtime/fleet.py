"""The workers of a driver: started, spoken to, watched, ended."""

from __future__ import annotations

import itertools
import os
import subprocess
import tempfile
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist

from hybridiff_compile import links
from hybridiff_compile.errors import ClosedError, HybridiffError, WorkerError
from hybridiff_compile.runtime import messages, spawn
from hybridiff_compile.runtime.endings import (
    LAST_WORDS_SECONDS,
    LOG,
    end,
    ended,
    exit_code,
    give_up,
    remove_folder,
    said,
)
from hybridiff_compile.runtime.pulse import COMPILE_DEADLINES, DEADLINE, WORK_DEADLINES, Watch

# Seconds until a started worker must have said hello: it imports torch first.
_START_SECONDS = 120

#: Starts a worker and calls what can be done meanwhile.
Start = Callable[[Callable[[], None]], "Fleet"]

_keys = itertools.count()


def new_key() -> int:
    """A key for a captured signature, unique in this process: workers may serve several models."""
    return next(_keys)


class Fleet:
    """One worker rank beside the driver, and the links between them.

    Every wait for the worker has an end: `watch` gives it up after its deadline of silence.

    Attributes:
        groups: the process groups of the links; none once it is closed.
        watch: of the waits for the worker.
        sent_bytes: of control messages, since the start.
    """

    def __init__(
        self,
        connection: Connection,
        groups: links.Groups,
        process: subprocess.Popen | None,
        store: Path,
        watch: Watch,
    ) -> None:
        self.groups = groups
        self.watch = watch
        self.sent_bytes = 0
        self._connection = connection
        self._process = process
        self._log = store.with_name(LOG)
        self._doing = self._last = "while idle"
        self._words: str | None = None
        self._owner = os.getpid()
        self._finalizer = weakref.finalize(self, end, connection, process, groups, watch, store)
        _fleets.add(self)

    def send(self, message: messages.Message) -> None:
        """Send a message to the worker.

        Raises:
            WorkerError: it is gone, or does not take the message within the deadline.
            ClosedError: this process is a fork of the worker's driver.
        """
        self._doing = messages.doing(message) or self._doing
        if isinstance(message, messages.Step):
            self._last = f"while idle after {self._doing.removeprefix('in ')}"
        try:
            with self.watch.waiting():
                self.sent_bytes += messages.send(self._connection, message)
        except OSError as e:
            raise self.failure() from e

    def ask(self, message: messages.Message) -> messages.Status:
        """Send a message and wait for the answer, which says that it was carried out.

        Raises:
            WorkerError: the worker died instead, or was given up.
        """
        self.send(message)
        return self.answer()

    def answer(self, *, compiles: bool = False) -> messages.Status:
        """Wait for the answer to a message that was sent.

        Args:
            compiles: whether the worker compiles before it answers, which may take long.

        Raises:
            WorkerError: the worker died instead, or was given up.
        """
        with self.watch.waiting(COMPILE_DEADLINES if compiles else WORK_DEADLINES):
            status = _answer(self._connection, self.failure)
        self.rest()
        return status

    def rest(self) -> None:
        """Note that the worker has done what it was told to do, for the message of a failure."""
        self._doing = self._last

    def lost(self, error: BaseException) -> HybridiffError | None:
        """What to raise in place of an error during a step; None if the worker has no part in it.

        A worker that has ended, or was given up, breaks its links, which is a RuntimeError.
        """
        if not isinstance(error, RuntimeError):
            return None
        if self.watch.verdict is not None or self._has_failed():
            return self.failure()
        if links.is_link_error(error):
            return self.failure(f"lost its link ({str(error).splitlines()[0]})")
        return None

    def failure(self, how: str | None = None) -> HybridiffError:
        """What to raise when the worker failed: its rank, phase, step, cause and last lines.

        Args:
            how: it failed; None finds out.
        """
        if os.getpid() != self._owner:
            return forked(self._owner)
        if self._words is None:
            # Read before the worker is cut off: it then removes its log, if its driver is gone.
            code = None if self.watch.verdict or how else exit_code(self._process)
            self._words = self._failed(how or self._how(code))
        self.close()
        return WorkerError(self._words)

    def _failed(self, how: str) -> str:
        fix = ""
        if self.watch.verdict is not None:
            limit = f"{self.watch.deadline:g} s"
            fix = f" If it was only slow, give optimize() a longer deadline than {limit}."
        if self._process is None:
            return (
                f"rank 1, which a launcher started, {how} {self._doing}, and cannot be started "
                f"from here; its own output says why. Start the script again.{fix}"
            )
        so = f"{self._doing}; the run is lost, the next call starts a new worker.{fix}"
        return f"rank 1 {how} {so} {said(self._log)}"

    def _how(self, code: int | None) -> str:
        if self.watch.verdict is not None:
            return f"{self.watch.verdict} and was given up"
        return "is gone" if self._process is None else ended(code)

    def _has_failed(self) -> bool:
        """Whether the worker has ended, or ends within a moment, by itself."""
        if self._process is None:  # a worker says nothing unasked, so this is its end of file
            return self._connection.poll(LAST_WORDS_SECONDS)
        return exit_code(self._process) is not None

    @property
    def end(self) -> str | None:
        """How a worker ended; None while it runs, and always for a rank that a launcher started."""
        code = None if self._process is None else self._process.poll()
        return None if code is None else self._how(code)

    @property
    def is_own(self) -> bool:
        """Whether this process started the worker, and so can start another."""
        return self._process is not None

    @property
    def is_open(self) -> bool:
        """Whether the worker can be spoken to."""
        return self._finalizer.alive

    def release(self) -> None:
        """End the worker unless a launcher started it, which ends with this process."""
        if self._process is not None:
            self.close()

    def close(self) -> None:
        """Cut the worker off, which ends it; does nothing the second time."""
        self._finalizer()

    def disown(self) -> None:
        """In a forked child: let go of everything without a word; it is the parent's."""
        self._finalizer.detach()
        links.disown(self.groups)
        self.watch.disown()
        self._connection.close()  # the child's copy: else the worker would outlive the parent


_fleets: weakref.WeakSet[Fleet] = weakref.WeakSet()


def _disown_all() -> None:
    for fleet in list(_fleets):
        fleet.disown()


os.register_at_fork(after_in_child=_disown_all)


def forked(owner: int) -> ClosedError:
    """What to raise in a forked child for a model of its parent's, whose process id is `owner`."""
    return ClosedError(
        f"this process ({os.getpid()}) is a fork of process {owner}, where the pipeline was "
        "optimized and whose worker serves that one alone. Call restore() and then optimize(pipe) "
        "here, or optimize after the fork only."
    )


def _answer(connection: Connection, failure: Callable[[], Exception]) -> messages.Status:
    try:
        status = messages.receive(connection)
    except (EOFError, OSError) as e:
        raise failure() from e
    assert isinstance(status, messages.Status)
    return status


def start(
    device: torch.device,
    peer: torch.device,
    meanwhile: Callable[[], None],
    deadline: float = DEADLINE,
) -> Fleet:
    """Start one worker as a process of its own and connect to it.

    Args:
        device: of this process (rank 0).
        peer: device of the worker (rank 1).
        meanwhile: called while the worker imports torch, which takes a second.
        deadline: seconds without a sign of life after which the worker is given up.

    Raises:
        WorkerError: it did not come up.
    """
    store_file = Path(tempfile.mkdtemp(prefix="hybridiff-")) / "store"
    log = store_file.with_name(LOG)
    with ExitStack() as undo:
        undo.callback(remove_folder, store_file)
        connection, pulse, process = spawn.worker(store_file, peer, deadline)
        groups: links.Groups = {}
        watch = Watch(pulse, process.pid, deadline, partial(give_up, connection, process, groups))
        undo.callback(end, connection, process, groups, watch, store_file)

        def failure() -> WorkerError:
            given_up = watch.verdict and f"{watch.verdict} and was given up"
            how = given_up or ended(exit_code(process))
            return WorkerError(f"rank 1 {how} while it started; it did not start. {said(log)}")

        meanwhile()
        with watch.waiting(_START_SECONDS / deadline):
            _answer(connection, failure)
            try:
                store = dist.FileStore(str(store_file), 2)
                patience = timedelta(seconds=deadline * WORK_DEADLINES)
                groups.update(links.connect(store, 0, 2, device, loopback=True, patience=patience))
            except RuntimeError as e:
                raise failure() from e
        undo.pop_all()
    return Fleet(connection, groups, process, store_file, watch)
