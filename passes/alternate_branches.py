"""alternate-branches: guided pipelining, one branch a step; its exact prediction is a step late."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx

from hybridiff_compile.ir import (
    BRANCHES,
    GUIDED,
    Level,
    Parent,
    RankContract,
    StepProgram,
)
from hybridiff_compile.layout import Layout, PackCut, UnpackCut
from hybridiff_compile.passes.base import Pass


@dataclass(frozen=True)
class AlternateBranches(Pass):
    """Pipeline one branch of a cut serial program; the step before worked on the other one.

    Contract, for branch c (u likewise): `rank0(sample, e_u, ...)` and `rank1(sample, e_c)` become
        `rank0(sample, e_c, late from 1) -> late, cut_next to 1` (stage0 only) and
        `rank1(e_c, cut, late_e_u, cut_next from 0) -> late to 0, cut, late_e_c` (stage1 only).
    Rank 1 starts at once on the other branch's features of the step before, with that step's time
    and embeddings, which are its state: `late` is that step's exact prediction. The two
    programs of both branches take turns.
    """

    name: ClassVar = "alternate-branches"
    needs: ClassVar = Level.CUT
    gives: ClassVar = Level.SKEWED

    branch: str

    def __call__(self, program: StepProgram) -> StepProgram:
        now = program.graphs[BRANCHES.index(self.branch)]
        before = program.graphs[1 - BRANCHES.index(self.branch)]
        parts = (_first_stage(now), _last_stage(now, before))
        return replace(
            program,
            phase=GUIDED[BRANCHES.index(self.branch)],
            level=Level.SKEWED,
            graphs=tuple(module for module, _ in parts),
            contracts=tuple(contract for _, contract in parts),
        )


def _call(module: fx.GraphModule, child: str) -> fx.Node:
    return next(n for n in module.graph.nodes if n.op == "call_module" and n.target == child)


def _buffer(stage0: fx.Node) -> torch.Tensor:
    """The value of the packed cut."""
    value = stage0.meta["val"]
    return value[0].new_empty(Layout.of(value).nbytes, dtype=torch.uint8)


def _first_stage(now: fx.GraphModule) -> tuple[fx.GraphModule, RankContract]:
    """Rank 0: the branch's features leave; the peer's late prediction is the result."""
    graph, env = fx.Graph(), {}
    stage0 = _call(now, "stage0")
    for node in stage0.all_input_nodes:
        env[node] = graph.node_copy(node)
    late = graph.placeholder("late")
    late.meta = {"val": _call(now, "stage1").meta["val"]}
    features = graph.node_copy(stage0, env.__getitem__)
    cut = graph.create_node("call_module", "pack", (features,), name="cut_next")
    cut.meta = {"val": _buffer(stage0)}
    graph.output({"late": late, "cut_next": cut})
    pack = PackCut(Layout.of(stage0.meta["val"]))
    children = {"stage0": now.get_submodule("stage0"), "pack": pack}
    return Parent(children, graph, class_name="Rank0"), RankContract(
        inputs=tuple(n.name for n in stage0.all_input_nodes),
        imports=(("late", 1),),
        results=("late",),
        exports=(("cut_next", 1),),
    )


def _last_stage(now: fx.GraphModule, before: fx.GraphModule) -> tuple[fx.GraphModule, RankContract]:
    """Rank 1: the features of the step before give its prediction; this step's inputs are kept."""
    graph, env = fx.Graph(), {}
    stage0, stage1 = _call(before, "stage0"), _call(before, "stage1")
    inputs = [n for n in _call(now, "stage1").all_input_nodes if n.op == "placeholder"]
    read = [n for n in stage1.all_input_nodes if n.op == "placeholder"]
    kept = {f"late_{n.name}": graph.node_copy(n) for n in inputs}
    cut = graph.placeholder("cut")
    for node in read:
        env[node] = graph.placeholder(f"late_{node.name}")
        env[node].meta = {"val": node.meta["val"]}
    cut_next = graph.placeholder("cut_next")
    cut.meta, cut_next.meta = {"val": _buffer(stage0)}, {"val": _buffer(stage0)}
    env[stage0] = graph.create_node("call_module", "unpack", (cut,), name="features")
    env[stage0].meta = dict(stage0.meta)
    late = graph.node_copy(stage1, env.__getitem__)
    graph.output({"late": late, "cut": cut_next, **kept})
    unpack = UnpackCut(Layout.of(stage0.meta["val"]))
    children = {"stage1": before.get_submodule("stage1"), "unpack": unpack}
    return Parent(children, graph, class_name="Rank1"), RankContract(
        inputs=tuple(n.name for n in inputs),
        state=("cut", *(f"late_{n.name}" for n in read)),
        imports=(("cut_next", 0),),
        new_state=("cut", *kept),
        exports=(("late", 0),),
    )
