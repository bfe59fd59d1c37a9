"""Ranks that torchrun has started: rank 0 drives, the others serve it and exit with it."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

import torch
import torch.distributed as dist

from hybridiff_compile import ops
from hybridiff_compile.runtime import messages
from hybridiff_compile.runtime.fleet import Fleet

_ADDRESS = "hybridiff/address"
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


def drive(device: torch.device, meanwhile: Callable[[], None]) -> Fleet:
    """On rank 0: connect to rank 1, once in this process; models share the connection.

    Args:
        device: of this process.
        meanwhile: called first; the launcher has started rank 1 beside this one.
    """
    global _fleet
    meanwhile()
    if _fleet is not None:
        return _fleet
    shared = store()
    host = "127.0.0.1" if is_one_host() else socket.gethostname()
    key = secrets.token_bytes(16)
    with Listener((host, 0), authkey=key) as listener:
        _, port = listener.address  # pyright: ignore[reportGeneralTypeIssues]
        shared.set(_ADDRESS, f"{host} {port} {key.hex()}")
        connection = listener.accept()
    messages.receive(connection)  # its hello
    groups = ops.connect(shared, 0, world_size(), device, is_one_host())
    _fleet = Fleet(connection, groups, None, Path(os.devnull))
    return _fleet


def join() -> tuple[Connection, dist.Store]:
    """On another rank: connect to the driver."""
    shared = store()
    host, port, key = shared.get(_ADDRESS).decode().split()
    return Client((host, int(port)), authkey=bytes.fromhex(key)), shared  # pyright: ignore[reportReturnType]
