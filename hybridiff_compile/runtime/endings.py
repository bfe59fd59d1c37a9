"""How a worker ends, what it leaves behind, and what is said of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from hybridiff_compile import links
from hybridiff_compile.runtime.pulse import Watch

#: Seconds that a failing worker is given to end and to flush its last lines.
LAST_WORDS_SECONDS = 5
_LAST_LINES = 20
#: What a worker prints, beside its store.
LOG = "rank1.log"


def end(
    connection: Connection,
    process: subprocess.Popen | None,
    groups: links.Groups,
    watch: Watch,
    store: Path,
) -> None:
    """Let go of all that belongs to a worker, and end it if it was started from here."""
    watch.stop()  # first: it uses the rest
    links.disconnect(groups)
    connection.close()  # end of file ends the worker
    if process is not None:
        if exit_code(process) is None:
            process.kill()
            exit_code(process)  # one that the system does not let go of is not waited for
        remove_folder(store)


def give_up(connection: Connection, process: subprocess.Popen | None, groups: links.Groups) -> None:
    """End every wait for a worker that gives no sign of life, and the worker if it is ours.

    Args:
        connection, groups: of the worker; they are broken, and still have to be closed.
        process: None if a launcher started it.
    """
    if process is not None:
        process.kill()  # works on a stopped process too
    with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as control:
        control.shutdown(socket.SHUT_RDWR)
    links.cut(groups)


def exit_code(process: subprocess.Popen | None) -> int | None:
    """The worker's exit code, or None if it goes on running for the next moments."""
    if process is None:
        return None
    try:
        return process.wait(LAST_WORDS_SECONDS)
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


def said(log: Path) -> str:
    """The last lines that a worker printed, as the end of a message."""
    lines = log.read_text(errors="replace").splitlines()[-_LAST_LINES:] if log.exists() else []
    text = "\n".join(f"    {line}" for line in lines) or "    (it printed nothing)"
    return f"It said last:\n{text}"


def remove_folder(store: Path) -> None:
    """Remove what is left of a worker's folder: its store and the log beside it."""
    for file in (store, store.with_name(LOG)):
        file.unlink(missing_ok=True)
    with suppress(OSError):  # the other side was first
        store.parent.rmdir()
