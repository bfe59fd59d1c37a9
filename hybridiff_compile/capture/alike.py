"""Whether the ops of an exported graph do on every rank what they do in this process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from hybridiff_compile.errors import CaptureError

# Whose ops of a denoiser a worker knows: those that come with torch, for it imports no script of
# the user's. With a weight of torchao's it imports that. torch.export writes "export" ops itself,
# to reach into quantised weights.
OF_TORCH = ("aten", "export", "mkldnn", "onednn", "prims", "profiler", "quantized", "sparse")
_KNOWN = (*OF_TORCH, "torchao")

# Arguments that keep an op from drawing when they are 0 or False.
_DRAWING = ("p", "dropout", "dropout_p", "train", "training")


def check_ops(module: fx.GraphModule, name: str) -> None:
    """Refuse a graph whose ops a worker does not know, or does otherwise.

    Args:
        module: as exported, with the graphs within it.
        name: of the denoiser.

    Raises:
        CaptureError: it names the op.
    """
    for node in _nodes(module):
        op = node.target
        if not isinstance(op, torch._ops.OpOverload):
            continue
        if op.namespace not in _KNOWN:
            raise CaptureError(
                f"{name} calls the op {op.namespace}::{op._opname}, which torch does not bring: "
                "the process of the other rank does not know it"
            )
        if _draws(op, node):
            advice = "; eval() switches that off" if "dropout" in op._opname else ""
            raise CaptureError(
                f"{name} draws random numbers ({op.namespace}.{op._opname}), which ranks would "
                f"each draw for themselves{advice}"
            )


def _nodes(module: fx.GraphModule) -> Iterator[fx.Node]:
    for inner in module.modules():
        if isinstance(inner, fx.GraphModule):
            yield from inner.graph.nodes


def _draws(op: Any, node: fx.Node) -> bool:
    if torch.Tag.nondeterministic_seeded not in op.tags:
        return False
    arguments = op._schema.arguments
    given = {a.name: a.default_value for a in arguments}
    given |= dict(zip(given, node.args, strict=False)) | node.kwargs
    return all(given.get(name, True) for name in _DRAWING)
