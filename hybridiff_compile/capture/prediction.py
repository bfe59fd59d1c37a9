"""What a denoiser returns, as one tensor: programs, links and estimates know one prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from hybridiff_compile.errors import CaptureError


@dataclass(frozen=True)
class Form:
    """How a denoiser's answer is made of a prediction.

    Attributes:
        spec: the tree that the pipeline expects.
        leaves: for each leaf of it: the shape of one row of a tensor, or None for a leaf that is
            None. A single tensor is the prediction itself; several are flattened by rows and lie
            side by side, [rows, n0 + n1 + ...].
    """

    spec: pytree.TreeSpec
    leaves: tuple[tuple[int, ...] | None, ...]

    @classmethod
    def of(cls, output: Any, where: str) -> Form:
        """The form of an answer.

        Raises:
            CaptureError: it holds no tensor, something else than tensors, or tensors that have no
                rows in common.
        """
        found, spec = pytree.tree_flatten(output)
        tensors = [leaf for leaf in found if isinstance(leaf, torch.Tensor)]
        if not tensors or not all(x is None or isinstance(x, torch.Tensor) for x in found):
            raise CaptureError(
                f"{where} returns {len(tensors)} tensors among {len(found)} values; a denoiser "
                "must return one prediction, or several of one batch."
            )
        rows = {t.shape[0] if t.dim() else None for t in tensors}
        if len(tensors) > 1 and (len(rows) > 1 or len({(t.dtype, t.device) for t in tensors}) > 1):
            shown = ", ".join(f"{t.dtype}{list(t.shape)}" for t in tensors)
            raise CaptureError(
                f"{where} returns several tensors ({shown}) that differ in batch, dtype or device; "
                "only one prediction, or several of one batch and dtype, can be put together."
            )
        leaves = (tuple(x.shape[1:]) if isinstance(x, torch.Tensor) else None for x in found)
        return cls(spec, tuple(leaves))

    def pack(self, output: Any) -> torch.Tensor:
        """The prediction, [rows, ...], of an answer of this form."""
        tensors = [x for x in pytree.tree_leaves(output) if isinstance(x, torch.Tensor)]
        return tensors[0] if len(tensors) == 1 else torch.cat([t.flatten(1) for t in tensors], 1)

    def unpack(self, prediction: torch.Tensor) -> Any:
        """The answer that a prediction stands for, as the pipeline expects it."""
        shapes = [shape for shape in self.leaves if shape is not None]
        if len(shapes) == 1:
            parts: Sequence[torch.Tensor] = [prediction]
        else:
            sizes = [torch.Size(shape).numel() for shape in shapes]
            pairs = zip(prediction.split(sizes, 1), shapes, strict=True)
            parts = [part.reshape(-1, *shape).contiguous() for part, shape in pairs]
        tensors = iter(parts)
        filled = [None if shape is None else next(tensors) for shape in self.leaves]
        return pytree.tree_unflatten(filled, self.spec)


def packed(graph: fx.Graph, nodes: list[fx.Node]) -> fx.Node:
    """Add to an exported graph what `Form.pack` does, with the nodes' FakeTensors."""
    if len(nodes) == 1:
        return nodes[0]

    def call(op: Any, *args: Any) -> fx.Node:
        node = graph.call_function(op, args)
        values = fx.map_arg(args, lambda n: n.meta["val"])
        with torch.no_grad():
            node.meta = {"val": op(*values)}
        return node

    flat = [call(torch.ops.aten.reshape.default, n, [n.meta["val"].shape[0], -1]) for n in nodes]
    return call(torch.ops.aten.cat.default, flat, 1)
