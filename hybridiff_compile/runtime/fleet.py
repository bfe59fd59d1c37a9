"""The workers of a driver: started, spoken to, watched, ended."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist

from hybridiff_compile import ops
from hybridiff_compile.errors import WorkerError
from hybridiff_compile.runtime import messages

# Seconds until a started worker must have said hello: it imports torch first.
_START_SECONDS = 120
# Seconds that a failing worker is given to end and to flush its last lines.
_LAST_WORDS_SECONDS = 5
_LAST_LINES = 20
_LOG = "rank1.log"
_NOT_STARTED = "it did not start"

#: Starts a worker and calls what can be done meanwhile.
Start = Callable[[Callable[[], None]], "Fleet"]

_keys = itertools.count()


def new_key() -> int:
    """A key for a captured signature, unique in this process: workers may serve several models."""
    return next(_keys)


class Fleet:
    """One worker rank beside the driver, and the links between them.

    Attributes:
        groups: the process groups of the links.
        sent_bytes: of control messages, since the start.
    """

    def __init__(
        self,
        connection: Connection,
        groups: ops.Groups,
        process: subprocess.Popen | None,
        log: Path,
    ) -> None:
        self.groups = groups
        self.sent_bytes = 0
        self._connection = connection
        self._process = process
        self._log = log
        self._finalizer = weakref.finalize(self, _end, connection, process)

    def send(self, message: messages.Message) -> None:
        """Send a message to the worker.

        Raises:
            WorkerError: it is gone.
        """
        try:
            self.sent_bytes += messages.send(self._connection, message)
        except OSError as e:
            raise self.failure() from e

    def ask(self, message: messages.Message) -> messages.Status:
        """Send a message and wait for the answer, which says that it was carried out.

        Raises:
            WorkerError: the worker died instead.
        """
        self.send(message)
        return self.answer()

    def answer(self) -> messages.Status:
        """Wait for the answer to a message that was sent.

        Raises:
            WorkerError: the worker died instead.
        """
        return _answer(self._connection, self.failure)

    def failure(self) -> WorkerError:
        """What to raise when the worker failed: its rank, how it ended and its last lines."""
        if self._process is None:
            self.close()
            return WorkerError(
                "rank 1, which a launcher started, is gone, and cannot be started from here; its "
                "own output says why. Start the script again."
            )
        # Read before the worker is cut off: it then removes its log, for its driver may be gone.
        words = _last_words(_exit_code(self._process), self._log)
        self.close()
        return WorkerError(words)

    def has_failed(self) -> bool:
        """Whether the worker has ended, or ends within a moment, by itself."""
        if self._process is None:  # a worker says nothing unasked, so this is its end of file
            return self._connection.poll(_LAST_WORDS_SECONDS)
        return _exit_code(self._process) is not None

    @property
    def exit_code(self) -> int | None:
        """How a worker ended; None while it runs, and always for a rank that a launcher started."""
        return None if self._process is None else self._process.poll()

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


def _answer(connection: Connection, failure: object) -> messages.Status:
    try:
        status = messages.receive(connection)
    except (EOFError, OSError) as e:
        raise failure() from e  # pyright: ignore[reportCallIssue, reportGeneralTypeIssues]
    assert isinstance(status, messages.Status)
    return status


def _end(connection: Connection, process: subprocess.Popen | None) -> None:
    connection.close()  # end of file ends the worker
    if process is not None:
        try:
            process.wait(_LAST_WORDS_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _exit_code(process: subprocess.Popen | None) -> int | None:
    """The worker's exit code, or None if it goes on running for the next moments."""
    if process is None:
        return None
    try:
        return process.wait(_LAST_WORDS_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def ended(code: int | None) -> str:
    """Say how a worker ended, by its exit code; None if the driver had to end it."""
    if code is None:
        return "was ended by the driver"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal has no name
        return f"was killed by signal {-code}"
    return f"was killed by signal {-code} ({name}{'; out of memory?' if name == 'SIGKILL' else ''})"


def _last_words(
    code: int | None, log: Path, so: str = "the run is lost, the next call starts a new worker"
) -> str:
    lines = log.read_text(errors="replace").splitlines()[-_LAST_LINES:] if log.exists() else []
    said = "\n".join(f"    {line}" for line in lines) or "    (it printed nothing)"
    return f"rank 1 {ended(code)}; {so}. It said last:\n{said}"


def start(device: torch.device, peer: torch.device, meanwhile: Callable[[], None]) -> Fleet:
    """Start one worker as a process of its own and connect to it.

    Args:
        device: of this process (rank 0).
        peer: device of the worker (rank 1).
        meanwhile: called while the worker imports torch, which takes a second.

    Raises:
        WorkerError: it did not come up.
    """
    folder = Path(tempfile.mkdtemp(prefix="hybridiff-"))
    log, store_file = folder / _LOG, folder / "store"
    ours, theirs = socket.socketpair()
    command = [
        # -P: a module of the user's in the working directory must not stand in for a library's.
        *(sys.executable, "-P", "-m", "hybridiff_compile.worker"),
        *("--fd", str(theirs.fileno()), "--store", str(store_file)),
        *("--rank", "1", "--size", "2", "--device", str(peer)),
    ]
    with log.open("wb") as out, theirs:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno()],
            env=environment(),
            start_new_session=True,
        )
    connection = Connection(ours.detach())
    with ExitStack() as undo:
        undo.callback(remove_folder, store_file)
        undo.callback(_end, connection, process)
        meanwhile()
        try:
            _hello(connection, process, log)
            store = dist.FileStore(str(store_file), 2)
            groups = ops.connect(store, 0, 2, device, loopback=True)
        except RuntimeError as e:
            raise WorkerError(_last_words(_exit_code(process), log, _NOT_STARTED)) from e
        undo.pop_all()
    fleet = Fleet(connection, groups, process, log)
    weakref.finalize(fleet, remove_folder, store_file)
    return fleet


def environment() -> dict[str, str]:
    """The driver's environment, with this package importable wherever it was imported from."""
    here = str(Path(__file__).resolve().parents[2])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def _hello(connection: Connection, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not connection.poll(0.05):
        if process.poll() is not None or time.monotonic() > deadline:
            raise WorkerError(_last_words(process.poll(), log, _NOT_STARTED))
    words = partial(_last_words, log=log, so=_NOT_STARTED)
    _answer(connection, lambda: WorkerError(words(_exit_code(process))))


def remove_folder(store: Path) -> None:
    """Remove what is left of a worker's folder: its store and the log beside it."""
    for file in (store, store.with_name(_LOG)):
        file.unlink(missing_ok=True)
    with suppress(OSError):  # the other side was first
        store.parent.rmdir()
