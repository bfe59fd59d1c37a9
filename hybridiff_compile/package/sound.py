"""Whether a package's programs fit together, before any of them is built.

A graph's arguments are earlier nodes, its children are there, every value has the shape that its
node gives it, and what the two ranks and the phases hand each other agrees. What links need is
checked on the built program by the passes' own rules (`passes.verify`).

Every function raises ValueError, whose text says what is wrong and where.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from hybridiff_compile.ir import GUIDED, Phase
from hybridiff_compile.layout import Layout
from hybridiff_compile.ops import group_name
from hybridiff_compile.package import codec
from hybridiff_compile.package import program as records
from hybridiff_compile.runtime.messages import FEED_TAG

#: Shape, strides and dtype of a tensor.
_Like = tuple[tuple[int, ...], tuple[int, ...], str]

_STAMP: _Like = ((2,), (1,), "int64")
_TOKEN: _Like = ((0,), (1,), "uint8")


def check_phases(mode: str, ranks: Sequence[Collection[str]]) -> None:
    """The phases that a mode runs, on every rank."""
    pipelined = {
        "paper": {"SERIAL", "PIPELINED", "DRAINED"},
        "guided": {"SERIAL", *(phase.name for phase in GUIDED)},
    }
    wanted = pipelined.get(mode, {"SERIAL"})
    for rank, phases in enumerate(ranks):
        if set(phases) != wanted:
            raise ValueError(
                f"rank {rank} has programs for {', '.join(phases) or 'no phase'}; mode {mode} runs "
                f"{', '.join(sorted(wanted))}"
            )


def check_program(
    program: records.Program,
    phase: Phase,
    rank: int,
    inputs: Mapping[str, torch.Tensor],
    device: str,
) -> None:
    """One rank's graph of one phase.

    Args:
        program: to check.
        phase, rank: that it is for.
        inputs: what the driver feeds, by name, on any device.
        device: kind of device that the ranks compute on.
    """
    taken = fx.GraphModule(nn.Module(), fx.Graph())
    for name in program.children:
        if hasattr(taken, name):
            raise ValueError(f"child {name}: no child can be called so")
    values: dict[str, Any] = {}
    for place, node in enumerate(program.nodes):
        try:
            if isinstance(node, records.Output) != (place == len(program.nodes) - 1):
                raise ValueError("a graph's last node, and only that, is its output")
            _check_names(node, values)
            if isinstance(node, records.Module):
                _check_child(node, program.children.get(node.target), values)
            else:
                _check_call(node, values, phase, rank, device)
        except ValueError as e:
            raise ValueError(f"node {node.name}: {e}") from None
        values[node.name] = value_of(node)
    _check_returned(program)
    fed = {name: _like(tensor) for name, tensor in inputs.items()} | {"stamp": _STAMP}
    for name in program.contract.inputs:
        if name not in fed:
            raise ValueError(f"input {name}: the call has no such argument")
        same(f"input {name}", values.get(name), fed[name])
        _check_strides(f"input {name}", values[name], fed[name])


def _check_returned(program: records.Program) -> None:
    """What its contract says, and what makes the step wait: guards, and sends that have ended."""
    output, sends = program.nodes[-1], set()
    assert isinstance(output, records.Output)
    returned = output.args.items[0].values
    awaited = set()
    for node in program.nodes:
        if isinstance(node, records.Send):
            sends.add(node.name)
        elif isinstance(node, records.Guard) or (
            isinstance(node, records.Wait) and node.args.items[0].node in sends
        ):
            awaited.add(node.name)
    wanted = awaited.union(program.contract.results, program.contract.new_state)
    if wrong := wanted ^ returned.keys():
        raise ValueError(f"it returns {sorted(returned)}, and differs in {min(wrong)}")
    if wrong := [name for name in sorted(awaited) if returned[name].node != name]:
        raise ValueError(f"what it returns as {wrong[0]} is node {returned[wrong[0]].node}")


def _check_names(node: Any, earlier: Collection[str]) -> None:
    if node.name in earlier:
        raise ValueError("another node has its name")
    for ref in _refs(node.args):
        if ref.node not in earlier:
            raise ValueError(f"it reads {ref.node}, which is no earlier node")


def _check_call(node: Any, values: Mapping[str, Any], phase: Phase, rank: int, device: str) -> None:
    args, own = node.args.items, value_of(node)
    match node:
        case records.Placeholder():
            if node.target != node.name:
                raise ValueError(f"its target is {node.target}, another name")
        case records.Send():
            _check_link(args[3], args[2], rank, args[1])
            only_tensors([values[args[0].node]])
            same("it", own, _TOKEN)
        case records.Recv():
            _check_link(args[5], args[4], args[3], rank)
            same("it", own, (tuple(args[0]), (), args[1].dtype))
            _check_place(args[2].device, args[5] == group_name(args[3], rank), device)
        case records.Wait():
            same("it", own, values[args[0].node])
        case records.Guard():
            if args[2] != phase:
                raise ValueError(f"it guards phase {args[2]}, not {int(phase)} ({phase.name})")
            for value in (own, *(values[ref.node] for ref in args[:2])):
                same("a stamp", value, _STAMP)
        case records.Cat():
            _check_cat(own, [values[ref.node] for ref in args[0]])


def _check_link(group: str, tag: int, src: int, dst: int) -> None:
    if src == dst:
        raise ValueError(f"rank {src} links to itself")
    stamps = group_name(src, dst, stamp=True)
    if group not in (group_name(src, dst), stamps):
        raise ValueError(f"group {group} does not lead from rank {src} to rank {dst}")
    if tag == FEED_TAG and group != stamps:
        raise ValueError(f"tag {tag} is that of fed inputs")


def _check_place(place: str, is_data: bool, device: str) -> None:
    wanted = device if is_data else "cpu"
    if place.partition(":")[0] != wanted:
        raise ValueError(f"it receives on {place}, not on {wanted}")


def _check_cat(own: _Like, parts: Sequence[Any]) -> None:
    only_tensors(parts)
    (shape, _, dtype), rests = own, {(part[0][1:], part[2]) for part in parts}
    if any(not part[0] for part in parts) or rests != {(shape[1:], dtype)}:
        raise ValueError("it puts tensors together that differ in more than their first dimension")
    wanted = (sum(part[0][0] for part in parts), *shape[1:])
    same("it", own, (wanted, (), dtype))


def _check_child(node: records.Module, child: Any, values: Mapping[str, Any]) -> None:
    own, given = value_of(node), [values[ref.node] for ref in node.args.items]
    if child is None:
        raise ValueError(f"it calls {node.target}, which is no child of this graph")
    if isinstance(child, records.Stage):
        if (child.keys == "") != isinstance(node.value, records.Tensor):
            raise ValueError("a stage gives one tensor or a tuple, as its keys say")
        return
    layout = codec.layout(child)
    if Layout.of([slot.empty() for slot in child.slots]) != layout:
        raise ValueError(f"the slots of {node.target} do not lie as they are packed")
    buffer = ((child.nbytes,), (1,), "uint8")
    opened, closed = (given, own) if child.kind == "pack" else ([own], given[0] if given else None)
    same("the buffer", closed, buffer)
    if len(given) != 1 or not isinstance(opened[0], list):
        raise ValueError(f"{node.target} takes and gives one buffer and one tuple of tensors")
    if [(s, d) for s, _, d in opened[0]] != [(s.shape, s.dtype) for s in child.slots]:
        raise ValueError(f"the tensors of {node.target} are not those of its slots")


def _refs(arg: Any) -> Iterator[records.Ref]:
    match arg:
        case records.Ref():
            yield arg
        case records.Args(items=items):
            yield from _refs(items)
        case records.Returned(values=values):
            yield from values.values()
        case tuple() | list():
            for item in arg:
                yield from _refs(item)


def returned(program: records.Program) -> dict[str, Any]:
    """What a program returns, by name: shape, strides and dtype of each."""
    output, values = program.nodes[-1], {n.name: value_of(n) for n in program.nodes}
    assert isinstance(output, records.Output)
    return {name: values[ref.node] for name, ref in output.args.items[0].values.items()}


def value_of(node: Any) -> Any:
    """What a node gives: shape, strides and dtype of a tensor, or a list of those."""
    if isinstance(node.value, records.Tensors):
        return [item.tensor for item in node.value.items]
    return None if node.value is None else node.value.tensor


def only_tensors(values: Sequence[Any]) -> None:
    """Raise ValueError for a value that is a tuple of tensors."""
    if not all(isinstance(value, tuple) for value in values):
        raise ValueError("it takes a tensor, and is given a tuple of them")


def same(what: str, found: Any, wanted: Any) -> None:
    """The same shape and dtype; strides are a matter of what is called, see `_check_strides`."""
    if not isinstance(found, tuple) or (found[0], found[2]) != (wanted[0], wanted[2]):
        raise ValueError(f"{what} is {shown(found)}, not {shown(wanted)}")


def _check_strides(what: str, found: _Like, wanted: _Like) -> None:
    """The same strides, where a dimension has more than one element to step over."""
    pairs = zip(found[0], found[1], wanted[1], strict=True)
    if any(n > 1 and ours != theirs for n, ours, theirs in pairs):
        raise ValueError(f"{what} has strides {found[1]}, not {wanted[1]}")


def shown(value: Any) -> str:
    """A value's dtype and shape, as in messages."""
    if isinstance(value, tuple):
        return f"{value[2]}{list(value[0])}"
    return "nothing" if value is None else f"{len(value)} tensors"


def _like(tensor: torch.Tensor) -> _Like:
    return tuple(tensor.shape), tensor.stride(), codec.dtype_name(tensor.dtype)
