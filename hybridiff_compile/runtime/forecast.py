"""The exact predictions of a run so far, and what is extrapolated from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from hybridiff_compile.config import Estimator
from hybridiff_compile.ir import GUIDED, Phase
from hybridiff_compile.runtime.estimate import NODES, History, Reading, growth

# How the error was seen to grow with the product of the distances to the predictions that an
# extrapolation starts from: 1 for a smooth curve, less where its noise counts (0.4 to 0.8).
_GROWTH = 0.7

#: A measured number is read this many steps later, when its device has long computed it.
READ_AFTER = 2

#: Measures how far off an estimate was: (exact, estimate), both [rows, ...].
Weigh = Callable[[torch.Tensor, torch.Tensor], Reading]


class Forecast:
    """Extrapolates the rows of a run's predictions, and keeps account of how far off it was.

    What the rows mean does not count.

    Args:
        estimator: how.
        axis: where each step lies on the axis that it extrapolates along.
        parts: that they are kept in: 2 for guided pipelining, which computes one half at a time.
    """

    def __init__(self, estimator: Estimator, axis: Sequence[float], parts: int = 1) -> None:
        self._axis, self._parts = axis, parts
        self._estimator: Estimator = estimator
        self.restart()

    def restart(self) -> None:
        """Forget all predictions: what comes next has nothing to do with them."""
        self._kept = tuple(History(NODES[self._estimator]) for _ in range(self._parts))
        self._errors: list[tuple[int, Reading, float]] = []
        self._late: tuple[int, int, torch.Tensor, torch.Tensor] | None = None
        self._unweighed: tuple[int, torch.Tensor, torch.Tensor, float | None] | None = None

    def predicted(self, step: int) -> float | None:
        """Weighted error that extrapolating a step would make; None if nothing tells yet.

        The larger of what the last two computed steps showed, scaled to this step's distances.
        """
        seen = [(float(e), g) for i, e, g in self._errors[-3:] if i <= step - READ_AFTER][-2:]
        if not seen or step >= len(self._axis):
            return None
        reach = growth(self._kept[0].nodes, self._axis[step])
        return max(error * (reach / by) ** _GROWTH for error, by in seen)

    def computed(self, step: int, prediction: torch.Tensor) -> None:
        """Take a step's exact prediction, [rows, ...]."""
        if step >= len(self._axis):  # more steps than the run has: they are all computed
            self.restart()
            return
        x = self._axis[step]
        self._late = None  # what a late prediction is of has been overtaken
        if all(part.is_full for part in self._kept):
            by = growth(self._kept[0].nodes, x)
            self._unweighed = step, prediction, self.estimate(step), by
        for part, eps in zip(self._kept, prediction.chunk(self._parts), strict=True):
            part.note(x, eps)

    def arrived(self, step: int, phase: Phase, late: torch.Tensor) -> None:
        """Take what a guided step returned: the exact prediction of the guided step before it.

        Args:
            step, phase: of the step that returned it.
            late: [B, ...]; it means nothing when the pipeline has only begun to fill.
        """
        if self._late is not None:
            i, half, *estimates = self._late
            exact = list(estimates)
            exact[half] = late
            self._unweighed = i, torch.cat(exact), torch.cat(estimates), None
            self._kept[half].note(self._axis[i], late)
        first, second = self._estimates(step)
        self._late = (step, GUIDED.index(phase), first, second)

    @property
    def has_unweighed(self) -> bool:
        """Whether the last step showed an error that has not been weighed yet."""
        return self._unweighed is not None

    def weighed(self, weigh: Weigh) -> Reading | None:
        """Weigh the error that the last step showed, now that it is known by what.

        Returns:
            How far its estimate was off or, guided, that of the step before it; None if it showed
            nothing.
        """
        if self._unweighed is None:
            return None
        (step, exact, estimate, by), self._unweighed = self._unweighed, None
        error = weigh(exact, estimate)
        if by is not None:
            self._errors.append((step, error, by))
        return error

    def estimate(self, step: int) -> torch.Tensor:
        """The prediction of a step, [rows, ...]."""
        return torch.cat(self._estimates(step))

    def _estimates(self, step: int) -> list[torch.Tensor]:
        return [part.estimate(self._axis[step]) for part in self._kept]
