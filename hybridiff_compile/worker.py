"""A worker process: one rank that serves a driver until the driver is gone.

Started by the driver as `python -m hybridiff_compile.worker`; under torchrun, `optimize()` calls
`serve` on every rank but 0. It imports no diffusers and holds no pipeline, scheduler or RNG.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist

from hybridiff_compile import ops
from hybridiff_compile.ir import RankProgram
from hybridiff_compile.layout import Layout
from hybridiff_compile.lower.device import retarget
from hybridiff_compile.lower.eager import lower
from hybridiff_compile.runtime import memory, messages, transfer, weights
from hybridiff_compile.runtime.rank import Rank


class Worker:
    """The state of one worker between messages."""

    def __init__(self, connection: Connection, rank: int, device: torch.device) -> None:
        self._connection = connection
        self._number = rank
        self._device = device
        self._rank = Rank()
        self._weights: dict[str, torch.Tensor] = {}

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
            case messages.Weights(path, manifest):
                self._weights = weights.attach(path, manifest, self._device)
                messages.send(self._connection, self._status())
            case messages.Load(key, programs):
                loaded: list[RankProgram] = transfer.load(programs, self._weights)
                self._rank.load(key, [lower(retarget(p, self._device)) for p in loaded])
                memory.trim()
                messages.send(self._connection, self._status())
            case messages.Unload(keys):
                for key in keys:
                    self._rank.unload(key)
            case messages.Ask():
                messages.send(self._connection, self._status())
            case messages.Status():
                raise RuntimeError("a worker answers, it is not answered")

    def _step(self, message: messages.Step) -> None:
        fed = self._receive(message) if message.fed else {}
        self._rank.step(message.key, message.phase, message.step, fed)

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
        return messages.Status(ops.sent_bytes(), rss_mb, ops.unwaited())


def serve(
    connection: Connection,
    store: dist.Store,
    rank: int,
    size: int,
    device: torch.device,
    loopback: bool,
) -> None:
    """Join the ranks and serve the driver; returns when the driver is gone."""
    if device.type == "cpu":
        torch.set_num_threads(1)
    else:
        torch.cuda.set_device(device)
    worker = Worker(connection, rank, device)
    messages.send(connection, messages.Status(0, 0.0, 0))
    ops.activate(ops.connect(store, rank, size, device, loopback))
    with torch.no_grad():
        worker.serve()


def main() -> None:
    """Entry point of a started worker."""
    parser = argparse.ArgumentParser(description="a worker rank; started by optimize()")
    parser.add_argument("--fd", type=int, required=True, help="control pipe")
    parser.add_argument("--store", required=True, help="rendezvous file")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--device", type=torch.device, required=True)
    args = parser.parse_args()
    # Ctrl-C is the driver's to handle: it ends its workers by closing their pipes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    store = dist.FileStore(args.store, args.size)
    serve(Connection(args.fd), store, args.rank, args.size, args.device, loopback=True)
    os._exit(0)  # gloo's threads may still hold sockets of a driver that is gone


if __name__ == "__main__":
    main()
