"""The random numbers of a process: where they are, and putting them back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


def random_state(device: torch.device) -> list[torch.Tensor]:
    """Where the random numbers of the CPU and of a device are now; waits for the device."""
    own = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *own]


def random_numbers_now(device: torch.device) -> Callable[[], None]:
    """What puts the random numbers of the CPU and of a device back to where they are now."""
    of_cpu, *own = random_state(device)

    def put_back() -> None:
        torch.set_rng_state(of_cpu)
        for state in own:
            torch.cuda.set_rng_state(state, device)

    return put_back


@contextmanager
def random_numbers_kept(device: torch.device) -> Iterator[None]:
    """Within this, numbers are drawn that nobody sees: those of later pictures stay theirs."""
    put_back = random_numbers_now(device)
    try:
        yield
    finally:
        put_back()
