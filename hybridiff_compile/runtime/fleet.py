"""The workers of a driver: started, spoken to, watched, ended."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
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
        return _answer(self._connection, self.failure)

    def failure(self) -> WorkerError:
        """What to raise when the worker failed: its rank, how it ended and its last lines."""
        code = _exit_code(self._process)
        self.close()
        return WorkerError(_last_words(code, self._log))

    def has_failed(self) -> bool:
        """Whether the worker has ended, or ends within a moment, by itself."""
        if self._process is None:  # a worker says nothing unasked, so this is its end of file
            return self._connection.poll(_LAST_WORDS_SECONDS)
        return _exit_code(self._process) is not None

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


def _last_words(code: int | None, log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-_LAST_LINES:] if log.exists() else []
    ended = "was ended by the driver" if code is None else f"ended with exit code {code}"
    said = "\n".join(f"    {line}" for line in lines) or "    (it printed nothing)"
    return (
        f"rank 1 {ended}; the run is lost, the next call starts a new worker. It said last:\n{said}"
    )


def start(device: torch.device) -> Fleet:
    """Start one worker as a process of its own and connect to it.

    Args:
        device: of the worker (rank 1).

    Raises:
        WorkerError: it did not come up.
    """
    folder = Path(tempfile.mkdtemp(prefix="hybridiff-"))
    log, store_file = folder / "rank1.log", folder / "store"
    ours, theirs = socket.socketpair()
    command = [
        # -P: a module of the user's in the working directory must not stand in for a library's.
        *(sys.executable, "-P", "-m", "hybridiff_compile.worker"),
        *("--fd", str(theirs.fileno()), "--store", str(store_file)),
        *("--rank", "1", "--size", "2", "--device", str(device)),
    ]
    with log.open("wb") as out, theirs:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno()],
            env=_environment(),
            start_new_session=True,
        )
    connection = Connection(ours.detach())
    try:
        _hello(connection, process, log)
        store = dist.FileStore(str(store_file), 2)
        groups = ops.connect(store, 0, 2, _driver_device(device), loopback=True)
    except RuntimeError as e:
        _end(connection, process)
        error = WorkerError(_last_words(process.poll(), log))
        _remove(folder)
        raise error from e
    except BaseException:
        _end(connection, process)
        _remove(folder)
        raise
    fleet = Fleet(connection, groups, process, log)
    weakref.finalize(fleet, _remove, folder)
    return fleet


def _driver_device(worker: torch.device) -> torch.device:
    return torch.device(worker.type, 0) if worker.type == "cuda" else worker


def _environment() -> dict[str, str]:
    """The driver's environment, with this package importable wherever it was imported from."""
    here = str(Path(__file__).resolve().parents[2])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def _hello(connection: Connection, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not connection.poll(0.05):
        if process.poll() is not None or time.monotonic() > deadline:
            raise WorkerError(_last_words(process.poll(), log))
    _answer(connection, lambda: WorkerError(_last_words(_exit_code(process), log)))


def _remove(folder: Path) -> None:
    for file in folder.glob("*"):
        file.unlink(missing_ok=True)
    folder.rmdir()


@contextmanager
def weights_file() -> Iterator[Path]:
    """A file for weights to be mapped from; unlinked at the end, the mappings stay."""
    handle, name = tempfile.mkstemp(prefix="hybridiff-weights-")
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
