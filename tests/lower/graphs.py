"""Hand-made parts and programs, small enough to compile in a moment."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from hybridiff_compile.ir import Phase, RankContract, RankProgram

aten = torch.ops.aten


def with_values(module: fx.GraphModule, *inputs: Any) -> fx.GraphModule:
    """Note in every placeholder the tensor, or tuple of tensors, that it takes."""
    placeholders = (n for n in module.graph.nodes if n.op == "placeholder")
    for node, value in zip(placeholders, inputs, strict=True):
        node.meta["val"] = value
    return module


def layer(seed: int, rows: int = 2, size: int = 4) -> fx.GraphModule:
    """`(x: f32[rows, size]) -> sin(x @ w + b)`, with weights of this seed."""
    g = torch.Generator().manual_seed(seed)
    root = nn.Module()
    root.w = nn.Parameter(torch.randn(size, size, generator=g))
    root.register_buffer("b", torch.randn(size, generator=g))
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(aten.mm.default, (x, graph.get_attr("w")))
    y = graph.call_function(aten.add.Tensor, (y, graph.get_attr("b")))
    graph.output(graph.call_function(aten.sin.default, (y,)))
    return with_values(fx.GraphModule(root, graph, class_name="Layer"), torch.zeros(rows, size))


def chain(*parts: fx.GraphModule, rank: int = 0, phase: Phase = Phase.SERIAL) -> RankProgram:
    """`(x) -> {"y": ...}`: the parts one after the other, as children `stage0`, `stage1`, ..."""
    root, graph = nn.Module(), fx.Graph()
    given = next(n for n in parts[0].graph.nodes if n.op == "placeholder").meta["val"]
    value = graph.placeholder("x")
    value.meta["val"] = given
    for i, part in enumerate(parts):
        root.add_module(f"stage{i}", part)
        value = graph.call_module(f"stage{i}", (value,))
    graph.output({"y": value})
    module = fx.GraphModule(root, graph, class_name="Step")
    contract = RankContract(inputs=("x",), results=("y",))
    return RankProgram(phase, rank, contract, module, {"x": given.to("meta")})
