"""How long a step takes in each phase, from the times of what it is made of: pure functions.

The formulas are those of the programs as they run: within a step the ranks work side by side, and
the step ends when the driver has the prediction and its own values have left. A rank sends after
it has computed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of the parts of a step, each alone.

    Attributes:
        both: one device, both branches in one call of 2B.
        branch: each rank's forward of batch B, the whole denoiser.
        stages: A and B, stage0 on rank 0 and stage1 on rank 1, batch B.
        stages_of_both: the same at batch 2B.
        cut: X, the crossing tensors of one branch on the link, latency included.
        prediction: E, one branch's prediction on the link.
        own: what the driver adds to a step on two ranks: messages, guard, Python.
    """

    both: float
    branch: tuple[float, float]
    stages: tuple[float, float]
    stages_of_both: tuple[float, float]
    cut: float
    prediction: float
    own: float = 0.0


def serial(t: Times) -> float:
    """Each rank runs one branch, rank 1 sends its prediction."""
    return max(t.branch[0], t.branch[1] + t.prediction) + t.own


def pipelined(t: Times) -> float:
    """Each rank runs its stage on one branch, as in the paper's mode and in guided pipelining."""
    return max(t.stages[0] + t.cut, t.stages[1] + t.prediction) + t.own


def drained(t: Times) -> float:
    """The last pipelined step of the paper's mode: rank 1 alone works."""
    return t.stages[1] + t.prediction + t.own


def asyncdiff(t: Times) -> float:
    """Each rank runs its stage on both branches in one batch, on stale features (AsyncDiff)."""
    first, last = t.stages_of_both
    return max(first + 2 * t.cut, last + 2 * t.prediction) + t.own
