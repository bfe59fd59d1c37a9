"""A worker's process: how it is started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from hybridiff_compile.runtime.endings import LOG


def worker(
    store: Path, device: torch.device, deadline: float
) -> tuple[Connection, Connection, subprocess.Popen]:
    """Start a worker of rank 1.

    Args:
        store: the rendezvous file; what the worker prints goes beside it.
        device: where it computes.
        deadline: as of `fleet.start`.

    Returns:
        Its control pipe, its pulse and its process.
    """
    (ours, theirs), (pulse, their_pulse) = socket.socketpair(), socket.socketpair()
    command = [
        # -P: a module of the user's in the working directory must not stand in for a library's.
        *(sys.executable, "-P", "-m", "hybridiff_compile.worker"),
        *("--fd", str(theirs.fileno()), "--pulse", str(their_pulse.fileno())),
        *("--store", str(store), "--rank", "1", "--size", "2", "--device", str(device)),
        *("--deadline", str(deadline)),
        # What the driver has added to its path: weights may be of a class that lies there.
        *("--path", os.pathsep.join(filter(None, sys.path))),
    ]
    with store.with_name(LOG).open("wb") as out, theirs, their_pulse, ours, pulse:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno(), their_pulse.fileno()],
            env=environment(),
            start_new_session=True,
        )
        return Connection(ours.detach()), Connection(pulse.detach()), process


def environment() -> dict[str, str]:
    """The driver's environment, with this package importable wherever it was imported from."""
    here = str(Path(__file__).resolve().parents[2])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
