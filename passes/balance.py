"""Where to cut a denoiser by depth: cost and crossing bytes of every place, and the choice."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from hybridiff_compile.ir import nbytes, output_node

# Stages within 2 % of the best balance count as balanced; among those the fewest bytes win.
_SLACK = 0.02

# What a device computes in the time in which it reads a byte of weights. Without it, a UNet's
# middle, which reads most of the weights for few pixels, looks cheaper than it is.
# "cpu": fitted to single operators on a core with AVX-512 (180 GFLOP/s, 6.6 GB/s); "cuda": 16-bit
# matrix units and memory by the data sheets, 76 (RTX 3090) to 295 (H100).
_FLOPS_PER_BYTE = {"cpu": 27, "cuda": 150}


@dataclass(frozen=True, slots=True)
class Place:
    """A place where a denoiser can be cut.

    Attributes:
        index: the last node of stage 0, as an index into `noisy_nodes`.
        cost: of stage 0 and of stage 1, see `node_costs`.
        crossing: bytes of the tensors that stage 1 reads from stage 0.
    """

    index: int
    cost: tuple[int, int]
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


def node_flops(module: fx.GraphModule) -> dict[fx.Node, int]:
    """Floating-point operations of each node by torch's own formulas, on its FakeTensors."""

    def attention(q: tuple, k: tuple, v: tuple, *_: object, **__: object) -> int:
        return sdpa_flop_count(q, k, v)

    # torch has a formula for every device's fused attention but the CPU's.
    cpu_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={cpu_attention: attention})
    flops: dict[fx.Node, int] = {}
    known: dict[Hashable, int] = {}  # most blocks of a denoiser are alike
    with counter, torch.no_grad():
        for node in module.graph.nodes:
            if node.op != "call_function":
                continue
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
            shapes = tree_map(lambda a: tuple(a.shape) if isinstance(a, Tensor) else a, args)
            same = node.target, str(shapes), str(node.kwargs)
            if same not in known:
                before = counter.get_total_flops()
                node.target(*args, **kwargs)
                known[same] = counter.get_total_flops() - before
            flops[node] = known[same]
    return flops


def node_costs(module: fx.GraphModule) -> dict[fx.Node, int]:
    """What each node costs its device: the flops that it computes, and reading its weights."""
    costs = node_flops(module)
    for node in costs:
        weights = [n.meta["val"] for n in node.all_input_nodes if n.op == "get_attr"]
        costs[node] += sum(_FLOPS_PER_BYTE[w.device.type] * nbytes(w) for w in weights)
    return costs


def places(module: fx.GraphModule) -> list[Place]:
    """Every place where the denoiser can be cut into two stages, from first to last."""
    nodes = noisy_nodes(module.graph)
    position = {n: i for i, n in enumerate(nodes)}
    cost = _cost_by_position(module, position)
    crossing = [0] * (len(nodes) + 1)
    whole = [True] * len(nodes)
    for node, i in position.items():
        # The denoiser's own result is read after the last place.
        last = max((position.get(u, len(nodes) - 1) for u in node.users), default=i)
        for p in range(i, last):
            crossing[p] += nbytes(node.meta["val"])
            whole[p] &= isinstance(node.meta["val"], torch.Tensor)
    found, before, total = [], 0, sum(cost)
    for p in range(len(nodes) - 1):
        before += cost[p]
        if whole[p]:
            found.append(Place(p, (before, total - before), crossing[p]))
    return found


def _cost_by_position(module: fx.GraphModule, position: dict[fx.Node, int]) -> list[int]:
    """Cost by noisy node; what does not depend on the picture counts where it is first read."""
    costs = node_costs(module)
    first_read = dict(position)
    cost = [0] * len(position)
    end = output_node(module.graph)
    for node in reversed(module.graph.nodes):
        if node.op != "call_function":
            continue
        if node not in first_read:
            reads = [first_read[u] for u in node.users if u is not end and u in first_read]
            first_read[node] = min(reads, default=0)
        cost[first_read[node]] += costs[node]
    return cost


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
