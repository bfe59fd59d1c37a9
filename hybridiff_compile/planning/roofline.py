"""How long a graph takes on a device: each node by its flops or by its bytes, whichever is slower.

Nothing is run. Kernels of a data-sheet device are taken to reach fixed shares of its rates.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import fx

from hybridiff_compile.ir import nbytes
from hybridiff_compile.passes.balance import node_flops
from hybridiff_compile.planning.devices import COMPUTE, LAUNCH, MEMORY, Device

# They return a view of their input, or nearly always so; those that say so in their schema aside.
_VIEWS = {"reshape", "contiguous", "flatten", "unflatten", "chunk", "split", "detach", "to"}


def kernel_seconds(
    device: Device, flops: int, values: int, weights: int, *, wide: bool = False, batch: int = 1
) -> float:
    """How long a kernel takes.

    Args:
        device: that runs it.
        flops: by torch's formulas.
        values: bytes of activations that it reads and writes.
        weights: bytes of weights that it reads, whatever the batch.
        wide: whether it computes in 32 bits or more.
        batch: how many times as many pictures as flops and values are of.
    """
    compute = batch * flops / (COMPUTE * (device.flops32 if wide else device.flops))
    memory = (batch * values + weights) / (MEMORY * device.memory_rate)
    return max(compute, memory, LAUNCH)


def seconds(module: fx.GraphModule, device: Device, batch: int = 1) -> dict[fx.Node, float]:
    """How long each node takes that runs a kernel, by the FakeTensors that it carries.

    Args:
        module: the graph.
        device: that runs it.
        batch: how many times as many pictures as it was traced with.
    """
    flops, found = node_flops(module), {}
    for node in (n for n in module.graph.nodes if not is_view(n)):
        read = [(n, nbytes(n.meta["val"])) for n in node.all_input_nodes]
        weights = sum(size for n, size in read if _is_weight(n))
        values = sum(size for n, size in read if not _is_weight(n)) + nbytes(node.meta["val"])
        wide, own = _is_wide(node.meta["val"]), flops.get(node, 0)
        found[node] = kernel_seconds(device, own, values, weights, wide=wide, batch=batch)
    return found


def is_view(node: fx.Node) -> bool:
    """Whether a node only looks at its input in another way: no kernel runs."""
    target: Any = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return True
    return target._schema.name.partition("::")[2] in _VIEWS or any(
        r.alias_info is not None for r in target._schema.returns
    )


def peak_bytes(module: fx.GraphModule) -> int:
    """The most bytes of activations that are alive at once, inputs included, weights not.

    A value lives until its last reader, and so does what it is a view of.
    """
    position = {node: i for i, node in enumerate(module.graph.nodes)}
    base: dict[fx.Node, fx.Node] = {}
    last: dict[fx.Node, int] = {}
    for node, i in position.items():
        sources = [n for n in node.all_input_nodes if not _is_weight(n)]
        is_alias = bool(sources) and node.op != "output" and is_view(node)
        base[node] = base[sources[0]] if is_alias else node
        last |= {base[n]: i for n in (node, *sources)}
    change = [0] * (len(position) + 1)
    for node in (n for n in last if not _is_weight(n) and n.op != "output"):
        change[position[node]] += nbytes(node.meta["val"])
        change[last[node] + 1] -= nbytes(node.meta["val"])
    return max(accumulate(change))


def _is_wide(value: Any) -> bool:
    first = value[0] if isinstance(value, tuple | list) else value
    return isinstance(first, torch.Tensor) and first.dtype in (torch.float32, torch.float64)


def _is_weight(node: fx.Node) -> bool:
    return node.op == "get_attr"
