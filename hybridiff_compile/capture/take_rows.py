"""Some rows of a batch, taken out of the graph of the whole batch: a rewrite of exported graphs.

Some models cut their batch by what its rows mean: of the three branches of perturbed attention
two are computed otherwise than the third. Such a denoiser cannot be called with one branch, but
the graph of its batched call has all that this branch needs. The graph of a larger batch, beside
it, tells which dimension of each value has the rows and which numbers count them. That is read
off shapes: whoever takes rows compares values before relying on them.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from hybridiff_compile.errors import CaptureError
from hybridiff_compile.ir import Parent, output_node
from hybridiff_compile.layout import empty_alike

_ATEN = torch.ops.aten
_SPLITS = (
    _ATEN.split.Tensor,
    _ATEN.split.sizes,
    _ATEN.split_with_sizes.default,
    _ATEN.chunk.default,
    _ATEN.tensor_split.sections,
)


class TakeError(CaptureError):
    """The rows cannot be told apart by shapes."""


def take_rows(
    batched: fx.GraphModule, wide: fx.GraphModule, factor: int, wanted: Sequence[int]
) -> fx.GraphModule:
    """Write the graph that computes some rows of a prediction, of the same rows of its arguments.

    Args:
        batched: `(tensor arguments) -> prediction[rows, ...]`, with FakeTensors in `meta["val"]`.
        wide: the same of `factor` times as many rows.
        factor: over 1.
        wanted: rows to compute, in order.

    Returns:
        `(tensor arguments, these rows of them) -> prediction[len(wanted), ...]`.

    Raises:
        TakeError: the rows cannot be told apart by shapes.
    """
    (result,) = output_node(batched.graph).args
    assert isinstance(result, fx.Node)
    taker = _Taker(batched.graph, result.meta["val"].shape[0], factor, frozenset(wanted))
    nodes, others = list(batched.graph.nodes), list(wide.graph.nodes)
    if [(n.op, str(n.target)) for n in nodes] != [(n.op, str(n.target)) for n in others]:
        raise _unclear("it computes otherwise for another size of batch")
    for node, larger in zip(nodes[:-1], others, strict=False):
        taker.take(node, larger)
    return Parent(batched, taker.end(result), class_name="Rows")


class _Taker:
    """Writes a graph of the wanted rows, node by node.

    Of each value that has rows it knows which, in their order, and the dimension that has them:
    there, a row is one long, or several (frames or heads).
    """

    def __init__(self, batched: fx.Graph, count: int, factor: int, wanted: frozenset[int]) -> None:
        schemas = [getattr(node.target, "_schema", None) for node in batched.nodes]
        self._writes = any(schema is not None and schema.is_mutable for schema in schemas)
        self._all, self._factor, self._wanted = tuple(range(count)), factor, wanted
        self._graph, self._env = fx.Graph(), dict[fx.Node, fx.Node]()
        self._rows, self._dims = dict[fx.Node, tuple[int, ...]](), dict[fx.Node, int]()

    def take(self, node: fx.Node, larger: fx.Node) -> None:
        """Write what a node computes of the wanted rows, if it has any; `larger` is of more."""
        grown = self._grown(node.meta.get("val"), larger.meta.get("val"))
        if grown is not None:
            self._dims[node] = grown
        if node.op in ("placeholder", "get_attr"):
            self._given(node)
        elif (cut := self._cut(node)) is not None:
            self._slice(node, *cut)
        elif node.target is _ATEN.cat.default and grown == _dim(node, 1, node):
            self._cat(node)
        elif not (node.target in _SPLITS and self._is_by_rows(node)):
            self._copy(node, larger)

    def end(self, result: fx.Node) -> fx.Graph:
        """The graph, without what nobody reads."""
        if self._rows.get(result) != self._all or self._dims[result] or self._size(result) != 1:
            raise _unclear("its prediction has other rows than its batch")
        self._graph.output(self._env[result])
        self._graph.eliminate_dead_code()
        for node in list(self._graph.nodes):
            if node.op in ("placeholder", "get_attr") and not node.users:
                self._graph.erase_node(node)
        return self._graph

    def _kept(self, rows: Sequence[int]) -> int:
        return sum(row in self._wanted for row in rows)

    def _size(self, node: fx.Node) -> int:
        length = node.meta["val"].shape[self._dims[node]]
        if length % len(self._rows[node]):
            raise _unclear(f"{length} is not a whole number of rows")
        return length // len(self._rows[node])

    def _grown(self, value: Any, larger: Any) -> int | None:
        """The dimension that is longer in a larger batch; -1 if that is within a list."""
        if isinstance(value, tuple | list):
            pairs = zip(value, larger, strict=True)
            return -1 if any(self._grown(*pair) is not None for pair in pairs) else None
        if not isinstance(value, torch.Tensor):
            return None
        pairs = zip(value.shape, larger.shape, strict=True)
        dims = [dim for dim, (n, more) in enumerate(pairs) if n != more]
        if len(dims) > 1 or any(value.shape[d] * self._factor != larger.shape[d] for d in dims):
            raise _unclear("a value has rows in two dimensions")
        return next(iter(dims), None)

    def _given(self, node: fx.Node) -> None:
        made = self._env[node] = self._graph.node_copy(node)
        if node not in self._dims:
            return
        if node.op == "get_attr":
            raise _unclear("it holds a constant for each row")
        self._rows[node] = self._all
        dim, value = self._dims[node], node.meta["val"]
        length = self._size(node) * self._kept(self._all)
        shape = [length if d == dim else n for d, n in enumerate(value.shape)]
        with torch.no_grad():
            made.meta["val"] = empty_alike(value, shape)

    def _is_by_rows(self, split: fx.Node) -> bool:
        (source,) = split.all_input_nodes
        return source in self._dims and _dim(split, 2, source) == self._dims[source]

    def _cut(self, node: fx.Node) -> tuple[fx.Node, int, int] | None:
        """The value that a node is a cut of along its rows, and from where to where."""
        if node.target is operator.getitem:
            split: Any = node.args[0]
            index: Any = node.args[1]
            if split.target not in _SPLITS or not self._is_by_rows(split):
                return None
            (source,) = split.all_input_nodes
            lengths = [v.shape[self._dims[source]] for v in split.meta["val"]]
            start = sum(lengths[:index])
            return source, start, start + lengths[index]
        if node.target not in (_ATEN.slice.Tensor, _ATEN.narrow.default):
            return None
        source = node.all_input_nodes[0]
        if source not in self._dims or _dim(node, 1, source) != self._dims[source]:
            return None
        length = source.meta["val"].shape[self._dims[source]]
        given: list[Any] = [*node.args[2:], *(None, None, 1)[max(len(node.args) - 2, 0) :]]
        if given[2] != 1:
            raise _unclear("it takes some rows and leaves others between them")
        start = given[0] or 0
        start = min(start, length) if start >= 0 else max(start + length, 0)
        return source, start, start + node.meta["val"].shape[self._dims[source]]

    def _slice(self, node: fx.Node, source: fx.Node, start: int, end: int) -> None:
        size, rows = self._size(source), self._rows[source]
        if start % size or end % size or (node not in self._dims and end - start != 0):
            raise _unclear("it cuts within a row of its batch")
        first, last = start // size, end // size
        self._rows[node] = rows[first:last]
        skipped, length = self._kept(rows[:first]), self._kept(rows[first:last])
        if length == self._kept(rows) and length:
            self._env[node] = self._env[source]
        elif length:
            where = (self._dims[source], skipped * size, (skipped + length) * size)
            args = (self._env[source], *where)
            self._env[node] = self._call(_ATEN.slice.Tensor, args, {}, node)

    def _cat(self, node: fx.Node) -> None:
        parts: Any = node.args[0]
        if any(part not in self._rows for part in parts):
            raise _unclear("it puts rows together with something else")
        self._rows[node] = tuple(row for part in parts for row in self._rows[part])
        if len({self._size(part) for part in (*parts, node)}) > 1:
            raise _unclear("it puts rows of several sizes together")
        present = [self._env[part] for part in parts if part in self._env]
        if len(present) == 1 and not self._writes:
            self._env[node] = present[0]
        elif present:
            self._env[node] = self._call(node.target, (present, *node.args[1:]), {}, node)

    def _copy(self, node: fx.Node, larger: fx.Node) -> None:
        """Any other node computes of some rows what it computes of all: with smaller numbers."""
        sources = {self._rows[n] for n in node.all_input_nodes if n in self._rows}
        if len(sources) > 1:
            raise _unclear("it computes with different rows at once")
        rows = next(iter(sources), self._all)
        if node in self._dims:
            self._rows[node] = rows
        elif sources:
            raise _unclear("it computes something of all rows together")
        if node in self._dims and not self._kept(rows):
            return
        leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
        others, other_spec = pytree.tree_flatten((larger.args, larger.kwargs))
        if spec != other_spec:
            raise _unclear("it computes otherwise for another size of batch")
        pairs = zip(leaves, others, strict=True)
        args, kwargs = pytree.tree_unflatten([self._fewer(*pair, rows) for pair in pairs], spec)
        self._env[node] = self._call(node.target, args, kwargs, node)

    def _fewer(self, value: Any, more: Any, rows: Sequence[int]) -> Any:
        """An argument of a node for the wanted ones of some rows."""
        if isinstance(value, fx.Node):
            return self._env[value]
        if value == more:
            return value
        if type(value) is not int or value * self._factor != more:
            raise _unclear(f"{value} becomes {more} in a larger batch")
        if value * self._kept(rows) % len(rows):
            raise _unclear(f"{value} is not a whole number of rows")
        return value * self._kept(rows) // len(rows)

    def _call(self, target: Any, args: Any, kwargs: Any, like: fx.Node) -> fx.Node:
        if like.op != "call_function" or not callable(target):
            raise _unclear(f"it has a node of the kind {like.op}")
        made = self._graph.call_function(target, args, kwargs)
        given, named = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
        with torch.no_grad():
            made.meta = {**like.meta, "val": target(*given, **named)}
        return made


def _dim(node: fx.Node, position: int, of: fx.Node) -> int:
    """The dimension that a node was given at a position, counted from the front; 0 if none."""
    given: Any = node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0)
    return given % of.meta["val"].dim()


def _unclear(what: str) -> TakeError:
    return TakeError(f"its rows cannot be taken out of its batch's graph: {what}")
