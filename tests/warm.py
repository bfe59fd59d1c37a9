"""Workers forked from a process that has imported torch: `pytest --warm`.

To import torch takes a worker two seconds of a core, and the tests start some hundred workers. What
a worker does after its imports is the same. Workers of programs that a test runs (the command line,
scripts, the server) are started as users start them, and so are all of them without `--warm`.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

_ROOT = Path(__file__).resolve().parents[1]
_SET_CHILD_SUBREAPER = 36  # of prctl(2)
_LONGEST = 2**17  # bytes of an order


class Forked(subprocess.Popen):
    """A process that somebody else has started, and that is a child of this one all the same."""

    def __init__(self, pid: int, args: list[str]) -> None:
        # What Popen sets by starting a process; there is nothing to start.
        self.pid, self.args, self.returncode = pid, args, None
        self.stdin = self.stdout = self.stderr = None
        self._child_created, self._waitpid_lock = True, threading.Lock()


class Nursery:
    """The process that workers are forked from. It starts with this object, and ends with it."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tests.warm", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": str(_ROOT), "PYTHONUNBUFFERED": "1"},
            )

    def close(self) -> None:
        self._orders.close()
        self._process.wait(10)

    def popen(self, command: list[str], **options: Any) -> subprocess.Popen:
        """As `subprocess.Popen` for the command of `runtime/spawn.py`."""
        if os.getpid() != self._owner:  # a fork of ours: what it orders would be a child of ours
            return subprocess.Popen(command, **options)
        args = command[command.index("hybridiff_compile.worker") + 1 :]
        order = {"args": args, "env": options["env"], "folder": os.getcwd()}
        with self._lock:
            prctl(_SET_CHILD_SUBREAPER, 1)  # a worker whose parent ends becomes our child
            try:
                descriptors = [*options["pass_fds"], options["stdout"].fileno()]
                socket.send_fds(self._orders, [json.dumps(order).encode()], descriptors)
                pid = int(self._orders.recv(64))
            finally:
                prctl(_SET_CHILD_SUBREAPER, 0)
        return Forked(pid, command)


def fork_workers(main: Callable[[], None], orders: socket.socket) -> None:
    """Fork a worker for each order, until nobody is there to order one."""
    while True:
        order, descriptors, _, _ = socket.recv_fds(orders, _LONGEST, 3)
        if not order:
            return
        ours, theirs = os.pipe()
        if (between := os.fork()) == 0:
            if pid := os.fork():
                os.write(theirs, str(pid).encode())
                os._exit(0)
            orders.close()
            for descriptor in (ours, theirs):
                os.close(descriptor)
            work(main, json.loads(order), *descriptors)
        os.waitpid(between, 0)  # from now on the worker is a child of who ordered it
        for descriptor in (*descriptors, theirs):
            os.close(descriptor)
        orders.send(os.read(ours, 64))
        os.close(ours)


def work(
    main: Callable[[], None], order: dict[str, Any], control: int, pulse: int, log: int
) -> NoReturn:
    """Be the worker that was ordered, as `runtime/spawn.py` starts one."""
    code = 1
    try:
        os.setsid()
        for output in (sys.stdout, sys.stderr):
            os.dup2(log, output.fileno())
        os.chdir(order["folder"])
        os.environ.clear()
        os.environ.update(order["env"])
        args = order["args"]
        for option, descriptor in (("--fd", control), ("--pulse", pulse)):
            args[args.index(option) + 1] = str(descriptor)
        sys.argv = ["worker", *args]
        main()
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def replaced(nursery: Nursery) -> SimpleNamespace:
    """What `runtime/spawn.py` uses of `subprocess`, with workers of a nursery."""
    return SimpleNamespace(
        Popen=nursery.popen, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT
    )


if __name__ == "__main__":
    import gc

    from hybridiff_compile import worker

    gc.freeze()
    fork_workers(worker.main, socket.socket(fileno=int(sys.argv[1])))
