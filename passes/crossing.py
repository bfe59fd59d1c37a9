"""What crosses a cut: what stage 1 reads of stage 0, less what it had better make again itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from hybridiff_compile.ir import nbytes


@dataclass(frozen=True)
class Crossing:
    """Attributes.

    tensors: nodes whose values are sent, in the order of the graph; the noisy picture itself, if
        something is made again from it.
    again: nodes of stage 0 that stage 1 runs as well.
    """

    tensors: tuple[fx.Node, ...]
    again: frozenset[fx.Node]

    @property
    def nbytes(self) -> int:
        """Of the tensors."""
        return sum(nbytes(n.meta["val"]) for n in self.tensors)


def crossing(
    read: Sequence[fx.Node], noisy: Collection[fx.Node], costs: Mapping[fx.Node, int], rate: int
) -> Crossing:
    """Choose what is sent, so that what stage 1 reads is there.

    A UNet's first convolution makes many channels of few: its result, which a skip connection hands
    to the last block, is more bytes than the picture, and next to no work.

    Args:
        read: the noisy nodes of stage 0 that stage 1 reads.
        noisy: all nodes that depend on the picture, and the picture's placeholder.
        costs: of running each noisy node once more, see `balance.Rates`.
        rate: the cost in which one byte crosses. A node is made again where that takes less.
    """
    sent, again = dict.fromkeys(read), set[fx.Node]()
    for node in sorted(read, key=lambda n: -nbytes(n.meta["val"])):
        chain, source = _made_from(node, noisy, sent, costs, rate)
        if chain:
            del sent[node]
            again |= chain
            sent.update(dict.fromkeys(source))
    return Crossing(tuple(sorted(sent)), frozenset(again))


def _made_from(
    node: fx.Node,
    noisy: Collection[fx.Node],
    sent: Collection[fx.Node],
    costs: Mapping[fx.Node, int],
    rate: int,
) -> tuple[set[fx.Node], list[fx.Node]]:
    """The nodes that make a value of less bytes, and that value; none if it does not pay."""
    chain, cost, at = set[fx.Node](), 0, node
    while at.op != "placeholder":
        chain.add(at)
        cost += costs[at]
        source = [n for n in at.all_input_nodes if n in noisy and n not in sent]
        saved = nbytes(node.meta["val"]) - sum(nbytes(n.meta["val"]) for n in source)
        if cost >= rate * nbytes(node.meta["val"]) or len(source) > 1:
            break
        if cost < rate * saved:
            return chain, source
        if not source:
            break
        (at,) = source
    return set(), []
