"""The weights of a run: read off at the scheduler's input, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from hybridiff_compile.runtime.combination import (
    WORST,
    View,
    not_uncond_cond,
    read,
    weighted_error,
)
from hybridiff_compile.runtime.estimate import Reading


@dataclass
class Weighing:
    """The weights that a pipeline gave the groups of its predictions so far.

    Attributes:
        steps: that were looked at, each with the weights on their way from the device, [J, n + 1]:
            first whether they were read. None where the scheduler was given nothing of a
            prediction's shape.
    """

    steps: list[tuple[int, Reading | None]] = field(default_factory=list)
    _view: View | None = None
    _weights: torch.Tensor | None = None
    _size: torch.Tensor | None = None

    def look(
        self,
        step: int,
        prediction: torch.Tensor,
        given: torch.Tensor | None,
        sample: torch.Tensor | None,
    ) -> None:
        """Read the weights of a step off; where they cannot be, the last ones that could be stay.

        Args:
            step: its index.
            prediction: that the pipeline was given, [rows, ...].
            given, sample: the scheduler's input, and the noisy picture with it.
        """
        view = None if given is None else View.of(prediction, given, sample)
        if view is None or given is None:
            self._view = None
            self.steps.append((step, None))
            return
        weights, known = read(view, prediction, given, sample)
        size, whole = view.of_given(given).abs().mean(1), prediction.float().abs().mean()
        if self._view is None or (self._view.given, self._view.groups) != (view.given, view.groups):
            self._weights = torch.full_like(weights, WORST)
        assert self._weights is not None
        self._view, self._weights = view, torch.where(known, weights, self._weights)
        # What is not understood may be in another unit: the smaller size is the worse one.
        self._size = torch.where(known, size, torch.minimum(size, whole))
        told = known.float().expand(view.given, 1)
        self.steps.append((step, Reading(torch.cat([told, weights], 1))))

    def error(self, exact: torch.Tensor, estimate: torch.Tensor) -> Reading:
        """Weighted error of the estimate of a prediction, both [rows, ...], after `look`.

        By the weights that were read last; by `WORST`, where none ever were.
        """
        if self._view is None or self._weights is None or self._size is None:
            groups = 2 if exact.numel() % 2 == 0 else 1
            one, two = (t.float().reshape(groups, -1) for t in (exact, estimate))
            worst = torch.full((1, groups), WORST * 2 / groups, device=exact.device)
            return Reading(weighted_error(one, two, worst, exact.float().abs().mean()[None]))
        one, two = (self._view.of_prediction(t) for t in (exact, estimate))
        return Reading(weighted_error(one, two, self._weights, self._size))

    def are_unknown(self) -> bool:
        """Whether none of the steps that were looked at told its weights; waits for the device."""
        return bool(self.steps) and self._last(self.steps[-1][0]) is None

    def not_uncond_cond(self, until: int) -> str | None:
        """Why the batch is not [uncond, cond], guided, as the steps up to one tell; "" if it is.

        None while there is no such step.
        """
        if not any(step <= until for step, _ in self.steps):
            return None
        weights = self._last(until)
        if weights is None:
            return "what the scheduler is given does not tell which half of the batch is which"
        return not_uncond_cond(weights)

    def _last(self, until: int) -> list[list[float]] | None:
        """The weights that were read last, [J, n]."""
        for step, reading in reversed(self.steps):
            if step <= until and reading is not None:
                rows = reading.tolist()
                if rows[0][0]:
                    return [row[1:] for row in rows]
        return None
