"""A worker process: one rank that serves a driver until the driver is gone.

Started by the driver as `python -m hybridiff_compile.worker`; under torchrun, `optimize()` calls
`serve` on every rank but 0. It holds no pipeline, scheduler or RNG, and imports no diffusers unless
it is given a denoiser that is a leaf.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import threading
from dataclasses import replace
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist

from hybridiff_compile import links, lower, ops
from hybridiff_compile.config import Lowering
from hybridiff_compile.ir import Leaf, RankProgram
from hybridiff_compile.layout import Layout
from hybridiff_compile.lower.device import retarget
from hybridiff_compile.runtime import endings, memory, messages, numerics, pulse, transfer, weights
from hybridiff_compile.runtime.rank import Rank

# Seconds that a worker without a driver is given to end by itself: it may be deep in a compiler.
_LAST_SECONDS = 5


class Worker:
    """The state of one worker between messages."""

    def __init__(self, connection: Connection, device: torch.device, groups: links.Groups) -> None:
        self._connection = connection
        self._device = device
        self._groups = groups
        self._rank = Rank(device)
        self._weights: dict[int, dict[str, torch.Tensor]] = {}  # by owner
        self._finish: lower.Finish = list
        self._warming: threading.Thread | None = None
        self._to_trim = False

    def serve(self) -> None:
        """Handle messages until the driver closes the pipe, or dies."""
        while True:
            try:
                message = messages.receive(self._connection)
            except (EOFError, ConnectionResetError):
                return
            self._handle(message)

    def _handle(self, message: messages.Message) -> None:
        match message:
            case messages.Step():
                self._step(message)
            case messages.Weights(owner, path, manifest, gone):
                found = weights.attach(path, manifest, self._device)
                weights.exchange(self._weights.setdefault(owner, {}), found, gone)
                messages.send(self._connection, self._status())
            case messages.Agree(values):
                numerics.apply(values)
            case messages.Warm(how):  # beside the messages of a capture that is under way
                self._warming = threading.Thread(target=lower.warm, args=(how, self._device))
                self._warming.start()
            case messages.Load(_, owner, programs, how):
                self._begin(transfer.load(programs, self._weights.get(owner, {})), how)
                messages.send(self._connection, self._status())
            case messages.Finish(key):
                self._rank.load(key, self._finish())
                self._finish, self._to_trim = list, True
                messages.send(self._connection, self._status())
                memory.trim()
            case messages.Unload(keys, owners):
                self._rank.unload(*keys)
                self._weights = {o: w for o, w in self._weights.items() if o not in owners}
            case messages.Ask(of_leaves):
                self._tell_leaves() if of_leaves else self._tell_steps()
            case messages.Status():
                raise RuntimeError("a worker answers, it is not answered")

    def _tell_leaves(self) -> None:
        told, Leaf.told[:] = tuple(Leaf.told), []
        messages.send(self._connection, replace(self._status(), told=told))

    def _tell_steps(self) -> None:
        status = replace(self._status(), steps=self._rank.take_steps())
        messages.send(self._connection, status)
        if self._to_trim and status.steps:
            self._to_trim = False  # the first steps leave what no other ones need
            memory.trim()

    def _begin(self, programs: list[RankProgram], how: Lowering) -> None:
        if self._warming is not None:
            self._warming.join()
        self._finish = lower.begin([retarget(p, self._device) for p in programs], how, self._device)

    def _step(self, message: messages.Step) -> None:
        ops.activate(self._groups)
        try:
            fed = self._receive(message) if message.fed else {}
            self._rank.step(message.key, message.phase, message.step, fed)
        except BaseException:
            ops.abandon()
            raise

    def _receive(self, message: messages.Step) -> dict[str, torch.Tensor]:
        """The new inputs of a step, as views of the one buffer that they came in."""
        specs = self._rank.variant(message.key, message.phase).specs
        layout = Layout.of([specs[name] for name in message.fed])
        if message.packed is None:
            link = (0, messages.FEED_TAG, messages.FEED_GROUP)
            buffer = ops.wait(ops.recv([layout.nbytes], torch.uint8, self._device, *link))
        else:  # copied, because the tensors in it keep the alignment that an allocator gives
            buffer = torch.frombuffer(bytearray(message.packed), dtype=torch.uint8).clone()
        return dict(zip(message.fed, layout.unpack(buffer), strict=True))

    def _status(self) -> messages.Status:
        rss_mb = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
        return messages.Status(ops.sent_bytes(), rss_mb, ops.unwaited(), lower.compilations())


def serve(
    connection: Connection,
    store: dist.Store,
    rank: int,
    size: int,
    device: torch.device,
    loopback: bool,
    deadline: float,
) -> None:
    """Join the ranks and serve the driver; returns when the driver is gone.

    `deadline` is the driver's, in seconds; a transfer of a step may take as long as a step may.
    """
    if device.type == "cpu":
        torch.set_num_threads(1)
    else:
        torch.cuda.set_device(device)
    messages.send(connection, messages.Status(0, 0.0, 0))
    patience = timedelta(seconds=deadline * pulse.WORK_DEADLINES)
    groups = links.connect(store, rank, size, device, loopback, patience)
    with torch.no_grad():
        Worker(connection, device, groups).serve()


def _is_cut_off(connection: Connection) -> bool:
    """Whether the driver closed the pipe or died, perhaps a moment after its links failed."""
    try:
        while connection.poll(0.2):
            connection.recv_bytes()
    except (EOFError, OSError):
        return True
    return False


def main() -> None:
    """Entry point of a started worker."""
    parser = argparse.ArgumentParser(description="a worker rank; started by optimize()")
    parser.add_argument("--fd", type=int, required=True, help="control pipe")
    parser.add_argument("--pulse", type=int, required=True, help="for signs of life")
    parser.add_argument("--store", required=True, help="rendezvous file")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--device", type=torch.device, required=True)
    parser.add_argument("--deadline", type=float, required=True, help="seconds")
    parser.add_argument("--path", required=True, help="the driver's, searched after our own")
    args = parser.parse_args()
    sys.path += [entry for entry in args.path.split(os.pathsep) if entry not in sys.path]
    # Ctrl-C is the driver's to handle: it ends its workers by closing their pipes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tidy = partial(endings.remove_folder, Path(args.store))
    pulse.answer(Connection(args.pulse), partial(pulse.end_soon, _LAST_SECONDS, tidy))
    store = dist.FileStore(args.store, args.size)
    connection = Connection(args.fd)
    try:
        ranks = (args.rank, args.size, args.device)
        serve(connection, store, *ranks, loopback=True, deadline=args.deadline)
    finally:
        if _is_cut_off(connection):  # a driver that was killed has left its folder behind
            tidy()
    os._exit(0)  # gloo's threads may still hold sockets of a driver that is gone


if __name__ == "__main__":
    main()
