"""Work shared out between ranks: parts to compile, branches to compute."""

from __future__ import annotations

from collections.abc import Sequence


def share(costs: Sequence[int], ranks: int) -> list[int]:
    """The rank of each piece of work: the costliest first, to the rank with the least yet.

    Args:
        costs: of each piece, in any unit. Those of one cost go to ranks 0, 1, ... in order.
        ranks: that there are.
    """
    load, owner = [0] * ranks, [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owner[index] = load.index(min(load))
        load[owner[index]] += costs[index]
    return owner
