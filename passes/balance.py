"""Where to cut a denoiser by depth: cost and crossing bytes of every place, and the choice."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from hybridiff_compile.ir import nbytes, output_node
from hybridiff_compile.passes.crossing import Crossing, crossing

# Stages within 2 % of the best balance count as balanced; among those the fewest bytes win.
_SLACK = 0.02


@dataclass(frozen=True, slots=True)
class Rates:
    """What a device computes, in flops, while a byte moves.

    Attributes:
        memory: is read or written. Without that of weights, a UNet's middle, which reads most of
            them for few pixels, looks cheaper than it is.
        link: crosses to the other rank.
    """

    memory: int
    link: int


#: By the kind of device. "cpu": fitted to single operators on a core with AVX-512 (180 GFLOP/s,
#: 6.6 GB/s), and the loopback interface (3 GB/s). "cuda": 16-bit matrix units by the data sheets,
#: against memory 76 (RTX 3090) to 295 (H100), against a link at half their speed 1700 (H100,
#: NVLink) to 6500 (RTX 4090, PCIe 4).
RATES = {"cpu": Rates(memory=27, link=60), "cuda": Rates(memory=150, link=2000)}


@dataclass(frozen=True, slots=True)
class Place:
    """A place where a denoiser can be cut.

    Attributes:
        index: the last node of stage 0, as an index into `noisy_nodes`.
        cost: of stage 0 and of stage 1, see `node_costs`; what both run counts in both.
        crossing: bytes of the tensors that cross.
    """

    index: int
    cost: tuple[float, float]
    crossing: int


def noisy_nodes(graph: fx.Graph) -> list[fx.Node]:
    """Nodes that depend on the noisy picture (the first placeholder), in order.

    All others (time and text embeddings, weights) can be made by any stage from its own inputs.
    """
    noisy = {next(n for n in graph.nodes if n.op == "placeholder")}  # weights may come before
    for node in graph.nodes:
        if node.op not in ("placeholder", "output") and not noisy.isdisjoint(node.all_input_nodes):
            noisy.add(node)
    return [n for n in graph.nodes if n in noisy and n.op != "placeholder"]


#: Flops by operator and shapes: most blocks of a denoiser are alike, and its stages are its own.
_KNOWN: dict[Hashable, int] = {}


def node_flops(module: fx.GraphModule) -> dict[fx.Node, int]:
    """Floating-point operations of each node by torch's own formulas, on its FakeTensors."""

    def attention(q: tuple, k: tuple, v: tuple, *_: object, **__: object) -> int:
        return sdpa_flop_count(q, k, v)

    # torch has a formula for every device's fused attention but the CPU's.
    cpu_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={cpu_attention: attention})
    flops: dict[fx.Node, int] = {}
    with counter, torch.no_grad():
        for node in module.graph.nodes:
            if node.op != "call_function":
                continue
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
            shapes = tree_map(lambda a: tuple(a.shape) if isinstance(a, Tensor) else a, args)
            same = node.target, str(shapes), str(node.kwargs)
            if same not in _KNOWN:
                before = counter.get_total_flops()
                node.target(*args, **kwargs)
                _KNOWN[same] = counter.get_total_flops() - before
            flops[node] = _KNOWN[same]
    return flops


def node_costs(module: fx.GraphModule, rates: Rates) -> dict[fx.Node, int]:
    """What each node costs its device: the flops that it computes, and reading its weights."""
    costs = node_flops(module)
    for node in costs:
        weights = [n.meta["val"] for n in node.all_input_nodes if n.op == "get_attr"]
        costs[node] += sum(rates.memory * nbytes(w) for w in weights)
    return costs


class Cuts:
    """Every place where a denoiser can be cut into two stages, and what crosses there.

    Args:
        module: the denoiser.
        rates: of the device that will run it.
    """

    def __init__(self, module: fx.GraphModule, rates: Rates) -> None:
        self.noisy = noisy_nodes(module.graph)
        self._rates = rates
        costs = node_costs(module, rates)
        self._position = {n: i for i, n in enumerate(self.noisy)}
        picture = next(n for n in module.graph.nodes if n.op == "placeholder")
        self._noisy = {picture, *self.noisy}
        # The denoiser's own result is read after the last place.
        end = len(self.noisy) - 1
        self._last = {
            n: max((self._position.get(u, end) for u in n.users), default=i)
            for n, i in self._position.items()
        }
        self._module = module
        self._by_position = self.by_position(costs)
        # What it takes to run a node a second time: its result is written, too.
        self._again = {
            n: costs.get(n, 0) + rates.memory * nbytes(n.meta["val"]) for n in self.noisy
        }

    def by_position(self, costs: Mapping[fx.Node, float]) -> list[float]:
        """Any cost by noisy node; what does not depend on the picture counts where it is read."""
        first_read = dict(self._position)
        cost = [0.0] * len(self.noisy)
        end = output_node(self._module.graph)
        for node in reversed(self._module.graph.nodes):
            if node.op != "call_function":
                continue
            if node not in first_read:
                reads = [first_read[u] for u in node.users if u is not end and u in first_read]
                first_read[node] = min(reads, default=0)
            cost[first_read[node]] += costs.get(node, 0)
        return cost

    def crossing(self, index: int) -> Crossing:
        """What crosses after the noisy node of that index."""
        return self._crossing([n for n in self.noisy[: index + 1] if self._last[n] > index])

    def places(self) -> list[Place]:
        """All of them, from first to last."""
        found, before, total = [], 0.0, sum(self._by_position)
        read: list[fx.Node] = []
        for index, node in enumerate(self.noisy[:-1]):
            before += self._by_position[index]
            read = [n for n in (*read, node) if self._last[n] > index]
            at = self._crossing(read)
            if all(isinstance(n.meta["val"], Tensor) for n in at.tensors):
                again = sum(self._again[n] for n in at.again)
                found.append(Place(index, (before, total - before + again), at.nbytes))
        return found

    def _crossing(self, read: Sequence[fx.Node]) -> Crossing:
        return crossing(read, self._noisy, self._again, self._rates.link)


def choose(candidates: Sequence[Place]) -> Place:
    """The place that crosses the fewest bytes among the best balanced ones.

    Raises:
        ValueError: there is no place to cut.
    """
    if not candidates:
        raise ValueError("the denoiser cannot be cut: no place where only tensors cross")
    best = min(max(p.cost) for p in candidates)
    balanced = [p for p in candidates if max(p.cost) <= best * (1 + _SLACK)]
    return min(balanced, key=lambda p: (p.crossing, max(p.cost)))
