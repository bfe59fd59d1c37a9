"""guard-phase: a rank refuses to go on when a peer is in another phase or step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx

from hybridiff_compile import ops
from hybridiff_compile.ir import Level, Phase, StepProgram, clone, output_node, returned_values
from hybridiff_compile.passes.base import Pass

# Tags of stamps lie above those of the links; a rank sends one stamp to each peer.
_STAMP_TAG = 1 << 16


@dataclass(frozen=True)
class GuardPhase(Pass):
    """Exchange stamps between the ranks, and check them before the first received value is used.

    Contract: a new input `stamp`, int64[2] on the CPU: (phase, step) of this rank. The stamps
    travel ahead of the values, while the ranks compute; the check stands before the first value
    that leaves or is used, so that it waits for nothing that the step would not wait for.
    """

    name: ClassVar = "guard-phase"
    needs: ClassVar = Level.LINKED
    gives: ClassVar = Level.GUARDED

    def __call__(self, program: StepProgram) -> StepProgram:
        ranks = range(len(program.graphs))
        values = (n.meta.get("val") for m in program.graphs for n in m.graph.nodes)
        example = next(v for v in values if isinstance(v, torch.Tensor))
        graphs = []
        for rank, module in enumerate(program.graphs):
            after = clone(module)
            stamp = _stamp_input(after.graph, example)
            for peer in ranks:
                if peer != rank:
                    _exchange(after.graph, stamp, rank, peer, program.phase)
            graphs.append(after)
        contracts = tuple(replace(c, inputs=(*c.inputs, "stamp")) for c in program.contracts)
        return replace(program, level=Level.GUARDED, graphs=tuple(graphs), contracts=contracts)


def _stamp_input(graph: fx.Graph, example: torch.Tensor) -> fx.Node:
    """Add the placeholder `stamp` behind the inputs, before the state."""
    nodes = list(graph.nodes)
    state = [n for n in nodes if n.op == "placeholder" and n.name == "cut"]
    behind = state or [n for n in nodes if n.op != "placeholder"]
    with graph.inserting_before(behind[0]):
        stamp = graph.placeholder("stamp")
    stamp.meta = {"val": example.new_empty(2, dtype=torch.int64, device="cpu")}
    return stamp


def _exchange(graph: fx.Graph, stamp: fx.Node, rank: int, peer: int, phase: Phase) -> None:
    body = [n for n in graph.nodes if n.op != "placeholder"]
    linked = (n for n in body if ops.is_send(n) or (ops.is_wait(n) and ops.is_recv(n.args[0])))
    first_use = next(linked, output_node(graph))
    to_peer, from_peer = (ops.group_name(a, b, stamp=True) for a, b in ((rank, peer), (peer, rank)))

    def call(name: str, target: object, args: tuple, like: fx.Node) -> fx.Node:
        node = graph.create_node("call_function", target, args, name=name)  # pyright: ignore
        node.meta = {"val": like.meta["val"]}
        return node

    with graph.inserting_before(body[0]):
        token = call(f"send_stamp{peer}", ops.SEND, (stamp, peer, _STAMP_TAG, to_peer), stamp)
        token.meta = {"val": stamp.meta["val"].new_empty(0, dtype=torch.uint8)}
        size = (list(stamp.meta["val"].shape), torch.int64, torch.device("cpu"))
        posted = call(f"recv_stamp{peer}", ops.RECV, (*size, peer, _STAMP_TAG, from_peer), stamp)
    with graph.inserting_before(first_use):
        arrived = call(f"wait_stamp{peer}", ops.WAIT, (posted,), posted)
        guard = call(f"guard{peer}", ops.GUARD, (stamp, arrived, int(phase), peer), stamp)
    with graph.inserting_before(output_node(graph)):
        sent = call(f"sent_stamp{peer}", ops.WAIT, (token,), token)
    returned = returned_values(graph)
    output_node(graph).args = ({**returned, sent.name: sent, guard.name: guard},)
