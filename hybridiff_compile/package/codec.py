"""Step programs as JSON and back: small graphs of our own ops, whose stages lie in other files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import fx, nn

from hybridiff_compile import ops
from hybridiff_compile.ir import RankContract
from hybridiff_compile.layout import Layout, PackCut, Slot, UnpackCut
from hybridiff_compile.package import program as records
from hybridiff_compile.package.schema import dtype_name

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
        if node.kwargs:
            raise TypeError(f"node {node} has keyword arguments, which packages do not: {target}")
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


def decode(
    program: records.Program, stage: Callable[[records.Stage], nn.Module]
) -> tuple[fx.GraphModule, RankContract]:
    """Build what `encode` wrote.

    Args:
        program: as `sound.check_program` found it sound.
        stage: makes the module of a stage.

    Raises:
        ValueError: a graph cannot have a node of such a name, or such a contract.
    """
    root, graph, env = nn.Module(), fx.Graph(), {}
    for name, child in program.children.items():
        root.add_module(name, _decode_child(child, stage))
    for row in program.nodes:
        target = row.target
        if row.op == "call_function":
            target = _FUNCTIONS[target]
        node = graph.create_node(row.op, target, _decode(row.args, env), name=row.name)
        if node.name != row.name:  # a keyword, or a name that the graph's own code has
            raise ValueError(f"node {row.name}: no node can be called so")
        if row.value is not None:
            node.meta["val"] = _value(row.value)
        env[row.name] = node
    contract = RankContract(**program.contract.model_dump())
    return fx.GraphModule(root, graph, class_name="Step"), contract


def layout(buffer: records.Buffer) -> Layout:
    """The layout of a buffer, as it was written."""
    slots = (Slot(s.offset, s.shape, s.stride, getattr(torch, s.dtype)) for s in buffer.slots)
    return Layout(tuple(slots), buffer.nbytes)


def _encode_child(child: nn.Module, file: Callable[[Any], Json]) -> Json:
    if isinstance(child, PackCut | UnpackCut):
        slots = [{**asdict(s), "dtype": dtype_name(s.dtype)} for s in child.layout.slots]
        kind = "pack" if isinstance(child, PackCut) else "unpack"
        return {"kind": kind, "slots": slots, "nbytes": child.layout.nbytes}
    return {"kind": "stage", **file(child)}


def _decode_child(
    child: records.Stage | records.Buffer, stage: Callable[[records.Stage], nn.Module]
) -> nn.Module:
    if isinstance(child, records.Stage):
        return stage(child)
    return (PackCut if child.kind == "pack" else UnpackCut)(layout(child))


def _encode(arg: Any) -> Any:
    """JSON for an argument: what JSON has no word for becomes an object with one key."""
    match arg:
        case fx.Node():
            return {"node": arg.name}
        case torch.Tensor():
            return {"tensor": [list(arg.shape), list(arg.stride()), dtype_name(arg.dtype)]}
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
        case int() | str():
            return arg
    raise TypeError(f"{type(arg).__name__} cannot be packaged: {arg!r}")


def _decode(arg: Any, env: Mapping[str, fx.Node]) -> Any:
    match arg:
        case records.Ref(node=name):
            return env[name]
        case records.DtypeOf(dtype=name):
            return getattr(torch, name)
        case records.DeviceOf(device=name):
            return torch.device(name)
        case records.Args(items=items):
            return _decode(items, env)
        case records.Returned(values=values):
            return {k: _decode(v, env) for k, v in values.items()}
        case tuple():
            return tuple(_decode(a, env) for a in arg)
        case list():
            return [_decode(a, env) for a in arg]
    return arg


def _value(value: records.Tensor | records.Tensors) -> Any:
    if isinstance(value, records.Tensors):
        return tuple(tensor.empty() for tensor in value.items)
    return value.empty()
