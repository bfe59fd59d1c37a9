"""Guided pipelining and forecasting on one device, written apart from the runtime.

A plain loop over the pipeline's own denoiser: each branch is computed where the schedule says so,
believed when the schedule says that it arrives, and drawn on as a straight line otherwise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from tests.reference import half, one_thread


class Extrapolated:
    """One call of a pipeline with phases pinned to the steps tau1 .. tau1 + k - 1.

    Args:
        denoiser: of the pipeline.
        kind: "guided" or "forecast".
        tau1, k, m: as in `optimize`.
    """

    def __init__(self, denoiser: Any, kind: str, tau1: int, k: int, m: int) -> None:
        self.denoiser, self.kind, self.tau1, self.k, self.m = denoiser, kind, tau1, k, m
        self.step = 0
        self.points: dict[int, list[tuple[int, torch.Tensor]]] = {0: [], 1: []}
        self.on_its_way: tuple[int, int, torch.Tensor] | None = None
        self.forwards = 0

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        self.own = self.denoiser.forward
        self.denoiser.forward = self.forward
        try:
            with one_thread():
                yield
        finally:
            del self.denoiser.forward

    def compute(self, branch: int, args: Any, kwargs: Any) -> torch.Tensor:
        doubled = len(args[0]) if args else len(kwargs["hidden_states"])
        args, kwargs = half((args, kwargs), branch, doubled)
        self.forwards += 1
        return self.own(*args, **kwargs)[0]

    def on_the_line(self, branch: int) -> torch.Tensor:
        (i, a), (j, b) = self.points[branch][-2:]
        return b + (b - a) * ((self.step - j) / (j - i))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        i = self.step - self.tau1
        within = 0 <= i < self.k
        if not within or (self.kind == "forecast" and (i + 1) % self.m == 0):
            eps = [self.compute(b, args, kwargs) for b in (0, 1)]
            for b in (0, 1):
                self.points[b].append((self.step, eps[b]))
            self.on_its_way = None
        else:
            if self.kind == "guided" and i % self.m == 0:
                if self.on_its_way is not None:
                    when, branch, value = self.on_its_way
                    self.points[branch].append((when, value))
                branch = 1 - (i // self.m) % 2
                self.on_its_way = (self.step, branch, self.compute(branch, args, kwargs))
            eps = [self.on_the_line(b) for b in (0, 1)]
        self.step += 1
        return (torch.cat(eps),)
