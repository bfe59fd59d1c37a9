"""The candidate cuts of a denoiser, and what a pipelined step takes at each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import fx

from hybridiff_compile.passes.balance import Cuts, Place, choose
from hybridiff_compile.planning.devices import Link

# Cuts whose larger stage is further above the best balance are no candidates.
_WIDEST = 1.3


@dataclass(frozen=True, slots=True)
class CutPlan:
    """A candidate.

    Attributes:
        where: module that its last node belongs to.
        cost: of stage 0 and of stage 1, see `balance.Place`.
        crossing: bytes of one branch.
        cycles: seconds of the cycles of a pipelined step, A + X and B + E.
    """

    where: str
    cost: tuple[float, float]
    crossing: int
    cycles: tuple[float, float]


def candidates(
    cuts: Cuts, seconds: Mapping[fx.Node, float], link: Link, prediction: int
) -> tuple[tuple[CutPlan, ...], int]:
    """The frontier between balance and crossing bytes, and the place in it that `optimize` takes.

    Args:
        cuts: of the denoiser.
        seconds: of each of its nodes.
        link: between the ranks.
        prediction: bytes of one branch's prediction.
    """
    places = cuts.places()
    chosen = choose(places)
    frontier = pareto(places)
    if chosen not in frontier:  # one of equal balance and bytes is there in its place
        same = next((p for p in frontier if p.crossing == chosen.crossing), None)
        frontier = [p for p in frontier if p is not same] + [chosen]
        frontier.sort(key=lambda p: -p.crossing)
    before = list(accumulate(cuts.by_position(seconds)))
    found = []
    for place in frontier:
        again = sum(seconds.get(n, 0.0) for n in cuts.crossing(place.index).again)
        first, last = before[place.index], before[-1] - before[place.index] + again
        cycles = (first + link.seconds(place.crossing), last + link.seconds(prediction))
        where = _where(cuts.noisy[place.index])
        found.append(CutPlan(where, place.cost, place.crossing, cycles))
    return tuple(found), frontier.index(chosen)


def pareto(places: Sequence[Place]) -> list[Place]:
    """Places that no other one is better balanced than with fewer bytes, most bytes first."""
    least = min(max(p.cost) for p in places)
    found: list[Place] = []
    for place in sorted(places, key=lambda p: (max(p.cost), p.crossing)):
        near = max(place.cost) <= _WIDEST * least
        if near and (not found or place.crossing < found[-1].crossing):
            found.append(place)
    return found


def _where(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0] or node.name if stack else node.name
