"""link-ranks: a send where a value is made, a receive and a wait where another rank reads it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx

from hybridiff_compile import ops
from hybridiff_compile.ir import (
    Level,
    StepProgram,
    clone,
    output_node,
    returned_values,
)
from hybridiff_compile.passes.base import Pass


@dataclass(frozen=True)
class LinkRanks(Pass):
    """Replace imports and exports by links: one send and its receive, matched by a tag.

    Contract: the imports' placeholders and the exports' returned values are gone; a returned
    `sent_<name>` is the waited token of a send, so that nothing takes it for dead code.
    A receive is posted before any compute and waited for right before its first reader; a send
    starts as soon as its value is there and is waited for at the end, so that transfers overlap.
    """

    name: ClassVar = "link-ranks"
    needs: ClassVar = Level.SPLIT
    gives: ClassVar = Level.LINKED

    def __call__(self, program: StepProgram) -> StepProgram:
        names = sorted(name for c in program.contracts for name, _ in c.exports)
        tags = {name: tag for tag, name in enumerate(names)}
        graphs, contracts = [], []
        for rank, (module, contract) in enumerate(
            zip(program.graphs, program.contracts, strict=True)
        ):
            after = clone(module)
            first = next(n for n in after.graph.nodes if n.op != "placeholder")
            for name, src in contract.imports:  # in the order in which they are sent
                _receive(after.graph, name, src, rank, tags[name], first)
            for name, dst in contract.exports:
                _send(after.graph, name, rank, dst, tags[name])
            graphs.append(after)
            contracts.append(replace(contract, imports=(), exports=()))
        return replace(
            program, level=Level.LINKED, graphs=tuple(graphs), contracts=tuple(contracts)
        )


def _receive(graph: fx.Graph, name: str, src: int, rank: int, tag: int, first: fx.Node) -> None:
    placeholder = next(n for n in graph.nodes if n.op == "placeholder" and n.name == name)
    value = placeholder.meta["val"]
    readers = list(placeholder.users)
    with graph.inserting_before(first):
        args = (list(value.shape), value.dtype, value.device, src, tag, ops.group_name(src, rank))
        posted = graph.create_node("call_function", ops.RECV, args, name=f"recv_{name}")
    with graph.inserting_before(next(n for n in graph.nodes if n in readers)):
        arrived = graph.create_node("call_function", ops.WAIT, (posted,), name=f"wait_{name}")
    posted.meta = arrived.meta = {"val": value}
    placeholder.replace_all_uses_with(arrived)
    graph.erase_node(placeholder)


def _send(graph: fx.Graph, name: str, rank: int, dst: int, tag: int) -> None:
    returned = returned_values(graph)
    value = returned.pop(name)
    with graph.inserting_after(value):
        args = (value, dst, tag, ops.group_name(rank, dst))
        token = graph.create_node("call_function", ops.SEND, args, name=f"send_{name}")
    with graph.inserting_before(output_node(graph)):
        sent = graph.create_node("call_function", ops.WAIT, (token,), name=f"sent_{name}")
    token.meta = sent.meta = {
        "val": value.meta["val"].new_empty(0, dtype=torch.uint8, device="cpu")
    }
    output_node(graph).args = ({**returned, f"sent_{name}": sent},)
