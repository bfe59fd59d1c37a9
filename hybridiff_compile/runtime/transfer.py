"""Programs on their way to a worker: graphs as tables of nodes, weights by name only.

A GraphModule's own pickling traces its code again, which would run every receive in it; and it
would carry the weights. A leaf is pickled as it is, its weights by name too. The bytes are only
ever read by a worker of the driver that wrote them.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

from hybridiff_compile.ir import Parent, Shape, nbytes

# Of tensors that a program carries with it: tables and masks have less; what has more has caught
# another model.
_MOST_BYTES = 1 << 30


def dump(value: Any, names: Mapping[int, str]) -> bytes:
    """Write programs.

    Args:
        value: what to write, such as a list of RankProgram.
        names: of the published weights, by the `id` of the tensor.

    Raises:
        PicklingError: it reaches something that another process cannot have. So do other errors,
            of whatever it reaches.
    """
    file = io.BytesIO()
    _Pickler(file, names).dump(value)
    return file.getvalue()


def load(data: bytes, weights: Mapping[str, torch.Tensor]) -> Any:
    """Read what `dump` wrote, with the weights of this process."""
    return _Unpickler(io.BytesIO(data), weights).load()


@dataclass(frozen=True, slots=True)
class _Ref:
    """Stands for a node in another node's arguments."""

    name: str


@dataclass(frozen=True, slots=True)
class _Row:
    """One node of a graph; a placeholder's value travels as shapes."""

    op: str
    name: str
    target: Any
    args: Any
    kwargs: Any
    value: Any = None


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, names: Mapping[int, str]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._names, self._bytes = names, 0

    def persistent_id(self, obj: Any) -> str | None:
        if not isinstance(obj, torch.Tensor):
            return None
        name = self._names.get(id(obj))
        self._bytes += 0 if name else nbytes(obj)
        if self._bytes > _MOST_BYTES:
            raise pickle.PicklingError(
                f"it reaches over {_MOST_BYTES >> 20} MiB of tensors that are no weights of its own"
            )
        return name

    def reducer_override(self, obj: Any) -> Any:
        if getattr(obj, "__module__", None) == "__main__" and hasattr(obj, "__qualname__"):
            raise pickle.PicklingError(
                f"{obj.__qualname__} is defined in the script itself, which the other process does "
                "not run; a module that can be imported can have it"
            )
        if isinstance(obj, torch._ops.OpOverload):
            namespace, name = obj._schema.name.split("::")
            return _op, (namespace, name, obj._overloadname)
        if isinstance(obj, fx.GraphModule):
            return _rebuild, _table(obj)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__(file)
        self._weights = weights

    def persistent_load(self, pid: str) -> torch.Tensor:
        return self._weights[pid]


def _op(namespace: str, name: str, overload: str) -> Any:
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)


def _table(module: fx.GraphModule) -> tuple[list[_Row], dict[str, Any], str]:
    def ref(arg: Any) -> Any:
        return _Ref(arg.name) if isinstance(arg, fx.Node) else arg

    rows, attributes = [], {}
    for node in module.graph.nodes:
        args, kwargs = map_aggregate((node.args, node.kwargs), ref)  # pyright: ignore
        value = node.meta.get("val") if node.op == "placeholder" else None
        shapes = None if value is None else pytree.tree_map(Shape.of, value)
        rows.append(_Row(node.op, node.name, node.target, args, kwargs, shapes))
        if node.op in ("get_attr", "call_module"):
            owner, _, name = node.target.rpartition(".")
            attributes[node.target] = getattr(module.get_submodule(owner), name)
    return rows, attributes, type(module).__name__


def _rebuild(rows: list[_Row], attributes: dict[str, Any], name: str) -> fx.GraphModule:
    graph, env = fx.Graph(), {}

    def node(arg: Any) -> Any:
        return env[arg.name] if isinstance(arg, _Ref) else arg

    for row in rows:
        args, kwargs = map_aggregate((row.args, row.kwargs), node)  # pyright: ignore
        env[row.name] = graph.create_node(row.op, row.target, args, kwargs, name=row.name)
        if row.value is not None:
            env[row.name].meta["val"] = pytree.tree_map(Shape.empty, row.value)
    return Parent(attributes, graph, class_name=name)
