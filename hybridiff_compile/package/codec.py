"""Step programs as JSON and back: small graphs of our own ops, whose stages lie in other files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import fx, nn

from hybridiff_compile import ops
from hybridiff_compile.errors import PackageError
from hybridiff_compile.ir import RankContract, Shape
from hybridiff_compile.layout import Layout, PackCut, Slot, UnpackCut

#: Every function that a step graph may call; a package cannot name another one.
_FUNCTIONS: Mapping[str, Any] = {
    "send": ops.SEND,
    "recv": ops.RECV,
    "wait": ops.WAIT,
    "guard": ops.GUARD,
    "cat": torch.cat,
}
_NAMES = {function: name for name, function in _FUNCTIONS.items()}

Json = dict[str, Any]


def encode(module: fx.GraphModule, contract: RankContract, file: Callable[[Any], Json]) -> Json:
    """Write one rank's step graph.

    Args:
        module: the graph; every node carries its value's shape.
        contract: its calling convention.
        file: describes a stage, which is stored elsewhere.
    """
    nodes = []
    children: Json = {}
    for node in module.graph.nodes:
        target = node.target
        if node.op == "call_function":
            target = _NAMES[target]
        elif node.op == "call_module":
            children[target] = _encode_child(module.get_submodule(target), file)
        nodes.append(
            {
                "op": node.op,
                "name": node.name,
                "target": target,
                "args": _encode(node.args),
                "value": _encode(node.meta.get("val")) if node.op != "output" else None,
            }
        )
    return {"contract": asdict(contract), "nodes": nodes, "children": children}


def decode(data: Json, stage: Callable[[Json], nn.Module]) -> tuple[fx.GraphModule, RankContract]:
    """Read what `encode` wrote.

    Args:
        data: from JSON.
        stage: makes the module of a stage from its description.

    Raises:
        PackageError: it names a function that no step graph calls.
    """
    root, graph, env = nn.Module(), fx.Graph(), {}
    for name, child in data["children"].items():
        root.add_module(name, _decode_child(child, stage))
    for row in data["nodes"]:
        target = row["target"]
        if row["op"] == "call_function":
            if target not in _FUNCTIONS:
                raise PackageError(f"the package calls {target!r}, which is not a step's function.")
            target = _FUNCTIONS[target]
        args = _decode(row["args"], env)
        node = graph.create_node(row["op"], target, args, name=row["name"])
        if row["value"] is not None:
            node.meta["val"] = _decode(row["value"], env)
        env[row["name"]] = node
    contract = {k: _tuples(v) for k, v in data["contract"].items()}
    return fx.GraphModule(root, graph, class_name="Step"), RankContract(**contract)


def _encode_child(child: nn.Module, file: Callable[[Any], Json]) -> Json:
    if isinstance(child, PackCut | UnpackCut):
        slots = [{**asdict(s), "dtype": dtype_name(s.dtype)} for s in child.layout.slots]
        kind = "pack" if isinstance(child, PackCut) else "unpack"
        return {"kind": kind, "slots": slots, "nbytes": child.layout.nbytes}
    return {"kind": "stage", **file(child)}


def _decode_child(data: Json, stage: Callable[[Json], nn.Module]) -> nn.Module:
    if data["kind"] == "stage":
        return stage(data)
    slots = tuple(
        Slot(s["offset"], tuple(s["shape"]), tuple(s["stride"]), getattr(torch, s["dtype"]))
        for s in data["slots"]
    )
    layout = Layout(slots, data["nbytes"])
    return PackCut(layout) if data["kind"] == "pack" else UnpackCut(layout)


def _encode(arg: Any) -> Any:
    """JSON for an argument: what JSON has no word for becomes an object with one key."""
    match arg:
        case fx.Node():
            return {"node": arg.name}
        case torch.Tensor():
            like = Shape.of(arg)
            return {"tensor": [like.shape, like.stride, dtype_name(like.dtype), like.on_cpu]}
        case torch.dtype():
            return {"dtype": dtype_name(arg)}
        case torch.device():
            return {"device": str(arg)}
        case tuple() | torch.Size():
            return {"tuple": [_encode(a) for a in arg]}
        case list():
            return [_encode(a) for a in arg]
        case Mapping():
            return {"dict": {k: _encode(v) for k, v in arg.items()}}
        case None | bool() | int() | float() | str():
            return arg
    raise TypeError(f"{type(arg).__name__} cannot be packaged: {arg!r}")


def _decode(data: Any, env: Mapping[str, fx.Node]) -> Any:
    if isinstance(data, list):
        return [_decode(d, env) for d in data]
    if not isinstance(data, dict):
        return data
    ((kind, value),) = data.items()
    match kind:
        case "node":
            return env[value]
        case "tensor":
            shape, stride, dtype, on_cpu = value
            return Shape(shape, stride, getattr(torch, dtype), on_cpu).empty()
        case "dtype":
            return getattr(torch, value)
        case "device":
            return torch.device(value)
        case "tuple":
            return tuple(_decode(d, env) for d in value)
        case "dict":
            return {k: _decode(d, env) for k, d in value.items()}
    raise PackageError(f"the package holds an argument of unknown kind {kind!r}.")


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype's name among torch's own."""
    return str(dtype).removeprefix("torch.")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
