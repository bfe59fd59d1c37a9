"""What the link between two ranks does: one sends, the other sends back what it was sent.

The links are those of a run: gloo over the loopback interface, NCCL between cards, host memory for
two ranks on one card. Each rank is a process that runs this file as a module.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
import torch.distributed as dist

from hybridiff_compile import links, ops, placing
from hybridiff_compile.errors import ConfigError, WorkerError
from hybridiff_compile.planning import clock, devices
from hybridiff_compile.runtime import endings, spawn

#: Bytes of a message that shows the latency, and of one that shows the rate.
SMALL, LARGE = 1 << 10, 1 << 22
ROUNDS = 30
RESULT = "seconds.json"
_SECONDS = 120  # that all of it may take
_TAG = 0


def between(device: torch.device, name: str) -> devices.Link:
    """The link from a device to the next rank's.

    Args:
        device: of rank 0.
        name: "here" measures it, another one is looked up.

    Raises:
        ConfigError: there is none of that name, or no second device here.
        WorkerError: see `measure`.
    """
    if name != devices.HERE:
        return devices.link(name)
    try:
        first, second = placing.ranks(device, 2)
    except ConfigError as e:
        raise ConfigError(
            f"link={name!r}: there is no second device here to measure it to; state one of "
            f"{', '.join(devices.LINKS)}."
        ) from e
    return measure(first, second)


def measure(device: torch.device, peer: torch.device) -> devices.Link:
    """Measure the link between two processes.

    Args:
        device, peer: as two ranks would use them.

    Raises:
        WorkerError: one of them failed, or both took too long.
    """
    command = [sys.executable, "-P", "-m", "hybridiff_compile.planning.link_probe"]
    ranks: list[subprocess.Popen[Any]] = []
    with tempfile.TemporaryDirectory(prefix="hybridiff-link-") as folder:
        log, result = Path(folder, endings.LOG), Path(folder, RESULT)
        try:
            with log.open("wb") as out:
                for rank, on in enumerate((device, peer)):
                    start = [*command, folder, str(rank), str(on)]
                    files: Any = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out}
                    ranks.append(subprocess.Popen(start, env=spawn.environment(), **files))
            codes, end = [rank.poll() for rank in ranks], time.monotonic() + _SECONDS
            while None in codes and not any(codes) and time.monotonic() < end:
                time.sleep(0.02)
                codes = [rank.poll() for rank in ranks]
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        if any(codes) or None in codes:
            how = endings.ended(next(filter(None, codes), None))
            raise WorkerError(
                f"a process that measures the link {how}; measure again, or state a link in place "
                f"of 'here'. {endings.said(log)}"
            )
        small, large = (trip / 2 for trip in json.loads(result.read_text()))
    rate = (LARGE - SMALL) / max(large - small, 1e-9)
    return devices.Link(devices.HERE, rate=rate, latency=max(0.0, small - SMALL / rate))


def main(folder: str, rank: int, device: torch.device) -> None:
    """One rank: there and back again, and rank 0 writes seconds of a trip by size."""
    torch.set_num_threads(1)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, peer = dist.FileStore(str(Path(folder, "store")), 2), 1 - rank
    ops.activate(links.connect(store, rank, 2, device, loopback=True))
    there, back = ops.group_name(rank, peer), ops.group_name(peer, rank)

    def received(nbytes: int) -> torch.Tensor:
        return ops.wait(ops.recv([nbytes], torch.uint8, device, peer, _TAG, back))

    def trip(payload: torch.Tensor) -> None:
        if rank == 0:
            ops.wait(ops.send(payload, peer, _TAG, there))
            received(len(payload))
        else:
            ops.wait(ops.send(received(len(payload)), peer, _TAG, there))

    trips = []
    for nbytes in (SMALL, LARGE):
        payload = torch.zeros(nbytes, dtype=torch.uint8, device=device)
        (taken,) = clock.samples([lambda payload=payload: trip(payload)], device, ROUNDS)
        # The quicker quarter: of the others some have waited for a processor.
        trips.append(quantiles(taken, n=4)[0])
    if rank == 0:
        Path(folder, RESULT).write_text(json.dumps(trips))
    os._exit(0)  # gloo's threads may still hold sockets of a rank that is gone


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), torch.device(sys.argv[3]))
