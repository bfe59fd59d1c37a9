"""How the calls that one thread makes of an optimized pipeline are to be answered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

import torch


class Prepared(BaseException):
    """Ends a dry call once the programs are ready; no pipeline catches it by mistake."""


class Here(threading.local):
    """Of the thread that looks.

    Attributes:
        is_dry: a call ends once its programs are ready.
        is_apart: a call is one device's alone, the branches one after the other.
    """

    def __init__(self) -> None:
        self.is_dry = self.is_apart = False

    @contextmanager
    def dry(self) -> Iterator[None]:
        """Within this, a call ends once its programs are ready."""
        self.is_dry = True
        try:
            with suppress(Prepared):
                yield
        finally:
            self.is_dry = False

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Within this, a call is one device's alone, the branches one after the other."""
        self.is_apart = True
        try:
            yield
        finally:
            self.is_apart = False

    def random_numbers_kept(self, device: torch.device) -> AbstractContextManager[None]:
        """A dry call draws latents that nobody sees: the numbers of later pictures stay theirs."""
        return random_numbers_kept(device) if self.is_dry else nullcontext()


def random_numbers_now(device: torch.device) -> Callable[[], None]:
    """What puts the random numbers of the CPU and of a device back to where they are now."""
    of_cpu = torch.get_rng_state()
    own = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def put_back() -> None:
        torch.set_rng_state(of_cpu)
        if own is not None:
            torch.cuda.set_rng_state(own, device)

    return put_back


@contextmanager
def random_numbers_kept(device: torch.device) -> Iterator[None]:
    """Within this, numbers are drawn that nobody sees: those of later pictures stay theirs."""
    put_back = random_numbers_now(device)
    try:
        yield
    finally:
        put_back()
