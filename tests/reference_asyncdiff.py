"""AsyncDiff's pipelining of both branches on one device: stale features, in a plain loop."""

from __future__ import annotations

from typing import Any

import torch

from tests.reference import PaperReference


class BatchReference(PaperReference):
    """One call of a pipeline whose batched denoiser calls run on features of the step before.

    Args:
        denoiser: of the pipeline.
        crossing: names of the exported graph's nodes whose values cross the cut.
        tau1, k: first of the stale steps, and how many they are.
    """

    def __init__(self, denoiser: Any, crossing: frozenset[str], tau1: int, k: int) -> None:
        super().__init__(denoiser, crossing, L=0, g=0.0, k=k, cap=tau1)
        self.tau1 = tau1
        self.stale: list[int] = []

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        assert self.tau1 is not None
        eps, features = self.run(args, kwargs, {})
        if self.tau1 <= self.step < self.tau1 + self.k:
            # The second stage never sees the picture: with NaN for it, a leak would show.
            eps, _ = self.run(*self.without_picture(args, kwargs), self.features)
            self.stale.append(self.step)
        self.features, self.step = features, self.step + 1
        return (eps,)
