"""The exact predictions of a run so far, and what is extrapolated from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from hybridiff_compile.config import Estimator
from hybridiff_compile.ir import BRANCHES, GUIDED, Phase
from hybridiff_compile.runtime.estimate import NODES, History, Reading, growth, weighted_error

# How the error was seen to grow with the product of the distances to the predictions that an
# extrapolation starts from: 1 for a smooth curve, less where its noise counts (0.4 to 0.8).
_GROWTH = 0.7

# A measured error is read this many steps later, when its device has long computed it.
_READ_AFTER = 2


class Forecast:
    """Extrapolates both branches of a run, and keeps account of how far off it was.

    Args:
        estimator: how.
        axis: where each step lies on the axis that it extrapolates along.
        guidance: tells the scale w of the step under way.
    """

    def __init__(
        self, estimator: Estimator, axis: Sequence[float], guidance: Callable[[], float]
    ) -> None:
        self._axis, self._guidance = axis, guidance
        self._branches = tuple(History(NODES[estimator]) for _ in BRANCHES)
        self._errors: list[tuple[int, Reading, float]] = []
        self._late: tuple[int, int, torch.Tensor, torch.Tensor] | None = None

    def predicted(self, step: int) -> float | None:
        """Weighted error that extrapolating a step would make; None if nothing tells yet.

        The larger of what the last two computed steps showed, scaled to this step's distances.
        """
        seen = [(float(e), g) for i, e, g in self._errors[-3:] if i <= step - _READ_AFTER][-2:]
        if not seen:
            return None
        reach = growth(self._branches[0].nodes, self._axis[step])
        return max(error * (reach / by) ** _GROWTH for error, by in seen)

    def computed(self, step: int, prediction: torch.Tensor) -> Reading | None:
        """Take a step's exact prediction, [2B, ...]; its estimate's error, if there was one."""
        exact, error, x = prediction.chunk(len(BRANCHES)), None, self._axis[step]
        self._late = None  # what a late prediction is of has been overtaken
        if all(branch.is_full for branch in self._branches):
            error = self._error(exact, self._estimates(step))
            self._errors.append((step, error, growth(self._branches[0].nodes, x)))
        for branch, eps in zip(self._branches, exact, strict=True):
            branch.note(x, eps)
        return error

    def arrived(self, step: int, phase: Phase, late: torch.Tensor) -> Reading | None:
        """Take what a guided step returned: the exact prediction of the guided step before it.

        Args:
            step, phase: of the step that returned it.
            late: [B, ...]; it means nothing when the pipeline has only begun to fill.

        Returns:
            How far the estimate was off that this prediction comes too late for.
        """
        error = None
        if self._late is not None:
            i, branch, *estimates = self._late
            exact = list(estimates)
            exact[branch] = late
            error = self._error(exact, estimates)
            self._branches[branch].note(self._axis[i], late)
        est_u, est_c = self._estimates(step)
        self._late = (step, GUIDED.index(phase), est_u, est_c)
        return error

    def estimate(self, step: int) -> torch.Tensor:
        """Both branches' predictions of a step, [2B, ...]."""
        return torch.cat(self._estimates(step))

    def _estimates(self, step: int) -> list[torch.Tensor]:
        return [branch.estimate(self._axis[step]) for branch in self._branches]

    def _error(self, exact: Sequence[torch.Tensor], estimates: Sequence[torch.Tensor]) -> Reading:
        (u, c), (est_u, est_c) = exact, estimates
        return Reading(weighted_error((u, c), (est_u, est_c), self._guidance()))
