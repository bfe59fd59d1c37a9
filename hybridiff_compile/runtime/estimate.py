"""Predictions that were not computed: extrapolated from the last exact ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from hybridiff_compile.config import Estimator

#: Exact predictions that each estimator reads.
NODES: dict[Estimator, int] = {"hold": 1, "linear": 2, "sigma": 2, "logsnr": 2, "quadratic": 3}


def weights(nodes: Sequence[float], x: float) -> list[float]:
    """Lagrange weights: the polynomial through values at `nodes`, at x, is their weighted sum."""
    return [
        math.prod((x - b) / (a - b) for j, b in enumerate(nodes) if j != i)
        for i, a in enumerate(nodes)
    ]


def growth(nodes: Sequence[float], x: float) -> float:
    """What the error of the extrapolation to x grows with: the product of the distances."""
    return abs(math.prod(x - node for node in nodes))


def axis(scheduler: Any, steps: int, estimator: Estimator) -> list[float]:
    """Where each step of a run lies on the axis that an estimator extrapolates along.

    Args:
        scheduler: the pipeline's, with its time steps set.
        steps: denoising steps of the run; they are the scheduler's last ones.
        estimator: "sigma" and "logsnr" read the scheduler's noise levels; where it tells none, or
            two steps have the same, the step's index is taken, as for the others.
    """
    index = [float(i) for i in range(steps)]
    if estimator not in ("sigma", "logsnr"):
        return index
    levels = _noise_levels(scheduler, steps)
    if levels is None:
        return index
    if estimator == "logsnr":
        levels = [(max(s, 1e-6), max(a, 1e-6)) for s, a in levels]
        found = [2 * math.log(a / s) for s, a in levels]
    else:
        found = [s for s, _ in levels]
    return found if len(set(found)) == steps else index


def _noise_levels(scheduler: Any, steps: int) -> list[tuple[float, float]] | None:
    """(sigma, alpha) of each step: the noisy picture is alpha x + sigma noise, up to its scale."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and len(sigmas) > steps:
        levels = [float(s) for s in sigmas[:-1][-steps:]]
        is_flow = float(max(sigmas)) <= 1.0  # of all: a run may begin in the middle
        return [(s, 1 - s if is_flow else 1.0) for s in levels]
    cumulative = getattr(scheduler, "alphas_cumprod", None)
    if cumulative is None:
        return None
    times = [int(t) for t in scheduler.timesteps[-steps:]]
    return [(math.sqrt(1 - float(cumulative[t])), math.sqrt(float(cumulative[t]))) for t in times]


class History:
    """The last exact predictions of some rows.

    Args:
        count: how many are kept and extrapolated from.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._known: list[tuple[float, torch.Tensor]] = []

    @property
    def nodes(self) -> list[float]:
        """Where they lie on the axis."""
        return [x for x, _ in self._known]

    @property
    def is_full(self) -> bool:
        """Whether there are as many as the estimator reads."""
        return len(self._known) == self._count

    def note(self, x: float, eps: torch.Tensor) -> None:
        """Take an exact prediction, [rows, ...], of the step at x."""
        self._known = [*self._known, (x, eps)][-self._count :]

    def estimate(self, x: float) -> torch.Tensor:
        """Extrapolate to x; of the dtype of the predictions, computed in float32 or above."""
        pairs = zip(weights(self.nodes, x), (eps for _, eps in self._known), strict=True)
        first, *others = [
            eps.to(torch.promote_types(eps.dtype, torch.float32)) * w for w, eps in pairs
        ]
        return sum(others, first).to(self._known[-1][1].dtype)


class Reading:
    """Numbers on their way from a device, so that reading them later waits for nothing after them.

    Args:
        value: of any shape.
    """

    def __init__(self, value: torch.Tensor) -> None:
        self._value, self._ready = value, None
        if value.device.type == "cuda":
            self._value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._value.copy_(value, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record()

    def __float__(self) -> float:
        return float(self.tolist())

    def tolist(self) -> Any:
        """As Python numbers, nested as the tensor was."""
        if self._ready is not None:
            self._ready.synchronize()
        return self._value.tolist()
