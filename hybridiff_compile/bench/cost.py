"""What a schedule costs, and which schedules no other one beats: pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hybridiff_compile.bench.figures import Row
from hybridiff_compile.ir import GUIDED, Phase

#: Forwards of batch B that each of two ranks runs in one step.
FORWARDS = {Phase.SERIAL: 1.0, Phase.FORECAST: 0.0} | dict.fromkeys(
    (Phase.PIPELINED, Phase.DRAINED, *GUIDED), 0.5
)


def forwards(phases: Iterable[Phase], mode: str = "exact") -> float:
    """Forwards of batch B that each of two ranks runs for a picture, by the phase of each step.

    In mode "asyncdiff" each is one of 2B, and in a serial step it is rank 0 alone that runs it.
    """
    return (2 if mode == "asyncdiff" else 1) * sum(FORWARDS[phase] for phase in phases)


def by_cost(row: Row) -> float | None:
    """Speed-up over exact on two ranks that messages cost nothing; None without a cost."""
    if not row.forwards_per_rank or row.steps is None:
        return None
    return row.steps / row.forwards_per_rank


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points that no other one is better than in one thing and at least as good in the other.

    Args:
        points: (speed-up, dB); of both, more is better.

    Returns:
        Their places, the fastest one first; of equal points the first one.
    """
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1], i))
    found: list[int] = []
    for i in order:
        if not found or points[i][1] > points[found[-1]][1]:
            found.append(i)
    return found
