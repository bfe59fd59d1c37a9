"""How the calls that one thread makes of an optimized pipeline are to be answered."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

import torch

from hybridiff_compile.randomness import random_numbers_kept


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
