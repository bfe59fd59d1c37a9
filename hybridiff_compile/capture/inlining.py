"""Graphs within an exported graph: torch.export makes one of each region with a mode of its own."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from hybridiff_compile.errors import ExportError
from hybridiff_compile.ir import output_node

#: By the name of the operator that runs such a graph: how many arguments come before the graph, and
#: which of them must be off for its nodes to compute the same without it. Gradients never matter.
_REGIONS = {"wrap_with_autocast": (4, 2), "wrap_with_set_grad_enabled": (1, None)}


def inner_graph(node: fx.Node, root: fx.GraphModule) -> tuple[fx.GraphModule, Sequence[Any]] | None:
    """The graph that a node runs, and its arguments; None for any other node.

    Raises:
        ExportError: it switches autocast on, which its nodes do without.
    """
    if not isinstance(node.target, torch._ops.HigherOrderOperator):
        return None
    if (region := _REGIONS.get(node.target.name())) is None:
        return None
    before, must_be_off = region
    if must_be_off is not None and node.args[must_be_off]:
        raise ExportError("a part of it runs in autocast, which a program has no place for")
    inner = node.args[before]
    assert isinstance(inner, fx.Node)
    return root.get_submodule(str(inner.target)), node.args[before + 1 :]  # pyright: ignore


def copy_nodes(
    source: fx.GraphModule,
    graph: fx.Graph,
    env: dict[fx.Node, Any],
    held: dict[str, Any],
) -> None:
    """Copy a graph's nodes to the end of another one, those of the graphs within it in their place.

    Args:
        source: what is copied.
        graph: where to.
        env: what stands for its placeholders; filled with what stands for its other nodes, and for
            its output, which is not copied, with what it returns.
        held: filled with the modules that the new nodes name.

    Raises:
        ExportError: see `inner_graph`.
    """

    def mapped(value: Any) -> Any:
        return map_aggregate(value, lambda a: env[a] if isinstance(a, fx.Node) else a)

    for node in (n for n in source.graph.nodes if n not in env):
        made = env.get(node.args[0]) if node.target is operator.getitem else None
        if node.op == "output":
            env[node] = mapped(node.args[0])
        elif isinstance(made, tuple | list):
            env[node] = made[node.args[1]]
        elif (found := inner_graph(node, source)) is not None:
            inner, arguments = found
            given = [n for n in inner.graph.nodes if n.op == "placeholder"]
            within = dict(zip(given, mapped(arguments), strict=True))
            copy_nodes(inner, graph, within, held)
            env[node] = within[output_node(inner.graph)]
        else:
            if node.op in ("get_attr", "call_module"):
                held[node.target] = source.get_submodule(node.target)
            args, kwargs = mapped(node.args), mapped(node.kwargs)
            env[node] = graph.create_node(node.op, node.target, args, kwargs, name=node.name)
            env[node].meta = dict(node.meta)
