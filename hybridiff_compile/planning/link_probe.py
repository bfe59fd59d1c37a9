"""What the link between two ranks does: a second process sends back what it is sent.

The links are those of a run: gloo over the loopback interface, NCCL between cards, host memory for
two ranks on one card. The driver's side is `measure`; the other is this file as a module.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles

import torch
import torch.distributed as dist

from hybridiff_compile import links, ops, placing
from hybridiff_compile.errors import ConfigError, WorkerError
from hybridiff_compile.planning import clock, devices
from hybridiff_compile.runtime import spawn
from hybridiff_compile.runtime.endings import ended

#: Bytes of a message that shows the latency, and of one that shows the rate.
SMALL, LARGE = 1 << 10, 1 << 22
ROUNDS = 30
_LAST_WORDS_SECONDS, _LAST_LINES = 5, 20
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
    """Measure the link from this process on a device to another one on another device.

    Args:
        device, peer: as two ranks would use them.

    Raises:
        WorkerError: the other process failed.
    """
    small, large = (seconds / 2 for seconds in _round_trips(device, peer))
    rate = (LARGE - SMALL) / max(large - small, 1e-9)
    return devices.Link(devices.HERE, rate=rate, latency=max(0.0, small - SMALL / rate))


def _round_trips(device: torch.device, peer: torch.device) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="hybridiff-link-") as folder:
        store = Path(folder) / "store"
        with _echoing(store, peer) as failure:
            try:
                ops.activate(links.connect(_open(store), 0, 2, device, loopback=True))
                trips = [_trip(nbytes, device) for nbytes in (SMALL, LARGE)]
                taken = [clock.samples([trip], device, ROUNDS)[0] for trip in trips]
                # The quicker quarter: of the others some have waited for a processor.
                return [quantiles(seconds, n=4)[0] for seconds in taken]
            except RuntimeError as e:
                raise WorkerError(failure()) from e


def _trip(nbytes: int, device: torch.device) -> Callable[[], None]:
    payload = torch.zeros(nbytes, dtype=torch.uint8, device=device)

    def trip() -> None:
        token = ops.send(payload, 1, _TAG, ops.group_name(0, 1))
        back = ops.recv([nbytes], torch.uint8, device, 1, _TAG, ops.group_name(1, 0))
        ops.wait(token)
        ops.wait(back)

    return trip


@contextmanager
def _echoing(store: Path, peer: torch.device) -> Iterator[Callable[[], str]]:
    """The other process, ready to connect; gives a function that says how it ended."""
    command = [sys.executable, "-P", "-m", "hybridiff_compile.planning.link_probe"]
    process = subprocess.Popen(
        [*command, str(store), str(peer)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=spawn.environment(),
    )
    assert process.stdout is not None

    said: list[str] = []
    end = threading.Timer(_SECONDS, process.kill)  # which ends every wait for it
    end.start()

    def failure() -> str:
        try:
            code = process.wait(_LAST_WORDS_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
            process.kill()
        said.extend(process.stdout or ())
        return (
            f"the process that measures the link {ended(code)}; measure again, or state a "
            f"link in place of 'here'. It said last:\n{''.join(said[-_LAST_LINES:])}"
        )

    try:
        said.append(process.stdout.readline())  # it imports torch first
        if said != ["ready\n"]:
            raise WorkerError(failure())
        yield failure
    finally:
        end.cancel()
        process.kill()
        process.wait()
        process.stdout.close()


def _open(store: Path) -> dist.FileStore:
    return dist.FileStore(str(store), 2)


def main() -> None:
    """Send back every message; a driver that is gone has closed the links, which ends this."""
    store, device = Path(sys.argv[1]), torch.device(sys.argv[2])
    torch.set_num_threads(1)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    ops.activate(links.connect(_open(store), 1, 2, device, loopback=True))
    for nbytes in (SMALL, LARGE):
        for _ in range(clock.WARM_UP + ROUNDS):
            back = ops.wait(ops.recv([nbytes], torch.uint8, device, 0, _TAG, ops.group_name(0, 1)))
            ops.wait(ops.send(back, 0, _TAG, ops.group_name(1, 0)))
    os._exit(0)  # gloo's threads may still hold sockets of a driver that is gone


if __name__ == "__main__":
    main()
