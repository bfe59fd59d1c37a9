"""Ranks that torchrun has started: rank 0 drives, the others serve it and exit with it."""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist

from hybridiff_compile import links
from hybridiff_compile.errors import WorkerError
from hybridiff_compile.runtime import messages
from hybridiff_compile.runtime.endings import give_up
from hybridiff_compile.runtime.fleet import Fleet
from hybridiff_compile.runtime.pulse import DEADLINE, WORK_DEADLINES, Watch, answer

_ADDRESS = "hybridiff/address"
_KEY_BYTES = 16
_fleet: Fleet | None = None


def world_size() -> int:
    """Number of ranks that a launcher has started; 1 in an ordinary script."""
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    return int(os.environ["WORLD_SIZE"]) if launched else 1


def rank() -> int:
    """This process's rank; 0 in an ordinary script."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def is_one_host() -> bool:
    """Whether all ranks run on this host, so that the loopback interface will do."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == world_size()


def store() -> dist.Store:
    """The rendezvous store: that of the existing process group, else the launcher's."""
    if dist.is_initialized():
        existing = dist.distributed_c10d._get_default_store()
    else:
        existing, _, _ = next(iter(dist.rendezvous("env://")))
    return dist.PrefixStore("hybridiff", existing)


def drive(device: torch.device, meanwhile: Callable[[], None], deadline: float = DEADLINE) -> Fleet:
    """On rank 0: connect to rank 1, once in this process; models share the connection.

    Args:
        device: of this process.
        meanwhile: called first; the launcher has started rank 1 beside this one.
        deadline: seconds without a sign of life after which rank 1 is given up; the first model's
            counts. Rank 1 may take 20 times as long to get to `optimize()`.

    Raises:
        WorkerError: rank 1 did not get there, or did not connect.
    """
    global _fleet
    meanwhile()
    if _fleet is not None:
        return _fleet
    shared, patience = store(), timedelta(seconds=deadline * WORK_DEADLINES)
    host = "127.0.0.1" if is_one_host() else socket.gethostname()
    key, end = secrets.token_bytes(_KEY_BYTES), time.monotonic() + patience.total_seconds()
    with socket.create_server((host, 0)) as server:
        shared.set(_ADDRESS, f"{host} {server.getsockname()[1]} {key.hex()}")
        connection, pulse = (_accept(server, key, end, deadline) for _ in range(2))
    groups: links.Groups = {}
    watch = Watch(pulse, None, deadline, partial(give_up, connection, None, groups))
    try:
        with watch.waiting():
            messages.receive(connection)  # its hello
            one_host = is_one_host()
            groups.update(links.connect(shared, 0, world_size(), device, one_host, patience))
    except (EOFError, OSError, RuntimeError) as e:
        watch.stop()
        links.disconnect(groups)
        connection.close()
        raise WorkerError(
            f"rank 1, which a launcher started, {watch.verdict or 'is gone'} while the ranks "
            "connected; its own output says why. Start the script again."
        ) from e
    _fleet = Fleet(connection, groups, None, Path(os.devnull), watch)
    return _fleet


def join(deadline: float) -> tuple[Connection, dist.Store]:
    """On another rank: connect to the driver, and give it signs of life from now on.

    Raises:
        WorkerError: rank 0 did not get to `optimize()` within 20 deadlines (seconds), or is gone.
    """
    shared, seconds = store(), deadline * WORK_DEADLINES
    try:
        shared.wait([_ADDRESS], timedelta(seconds=seconds))
        host, port, key = shared.get(_ADDRESS).decode().split()
        ends = [_open((host, int(port)), bytes.fromhex(key), deadline) for _ in range(2)]
    except (dist.DistError, OSError) as e:
        raise WorkerError(
            f"rank 0 could not be reached within {seconds:g} s: it did not get to optimize(), or "
            "is gone; its own output says why. Start the script again, perhaps with a longer "
            "deadline."
        ) from e
    connection, pulse = ends
    answer(pulse)
    return connection, shared


def _accept(server: socket.socket, key: bytes, end: float, deadline: float) -> Connection:
    """The next connection of the rank that knows the key, until `end` on the monotonic clock."""
    while (left := end - time.monotonic()) > 0:
        server.settimeout(left)
        try:
            other, _ = server.accept()
            with other:
                other.settimeout(deadline)
                said = other.recv(_KEY_BYTES, socket.MSG_WAITALL)
                if hmac.compare_digest(said, key):
                    return _connection(other)
        except OSError:  # too late, or not from the rank that is waited for
            continue
    raise WorkerError(
        "rank 1, which a launcher started, did not get to optimize() in time; its own output says "
        "why. Start the script again, perhaps with a longer deadline."
    )


def _open(address: tuple[str, int], key: bytes, deadline: float) -> Connection:
    with socket.create_connection(address, deadline) as other:
        other.sendall(key)
        return _connection(other)


def _connection(other: socket.socket) -> Connection:
    other.settimeout(None)
    other.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    return Connection(other.detach())
