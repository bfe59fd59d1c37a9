"""skew-stages: each rank keeps its stage and works on the features of the previous step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx

from hybridiff_compile.ir import (
    Level,
    Phase,
    RankContract,
    StepProgram,
    clone,
    output_node,
    returned_values,
)
from hybridiff_compile.layout import Layout, UnpackCut
from hybridiff_compile.passes.base import Pass


@dataclass(frozen=True)
class SkewStages(Pass):
    """Turn a cut serial program into the paper's parallelism stage (Sec. 4.2).

    Contract:
        `rank0(sample, e_u, eps_c from 1) -> prediction, cut` and
        `rank1(sample, e_c) -> eps_c to 0` become
        `rank0(sample, e_u, eps_c from 1) -> prediction, cut_next to 1` (stage0 only) and
        `rank1(e_c, cut, cut_next from 0) -> eps_c to 0, cut` (stage1 only).
    Rank 1 starts at once from the cut of the previous step, which is its state. Its prediction
    stands for both branches, so guidance has no effect. What does not depend on the noisy picture
    (time and text embeddings) is made by each rank from this step and its own branch.
    """

    name: ClassVar = "skew-stages"
    needs: ClassVar = Level.CUT
    gives: ClassVar = Level.SKEWED

    def __call__(self, program: StepProgram) -> StepProgram:
        first, last = (clone(g) for g in program.graphs)
        contracts = (keep_first_stage(first, "eps_c"), keep_last_stage(last, "eps_c"))
        return replace(
            program,
            phase=Phase.PIPELINED,
            level=Level.SKEWED,
            graphs=(first, last),
            contracts=contracts,
        )


def call_to(module: fx.GraphModule, child: str) -> fx.Node:
    """The one call of a child, by its name."""
    return next(n for n in module.graph.nodes if n.op == "call_module" and n.target == child)


def keep_first_stage(module: fx.GraphModule, name: str) -> RankContract:
    """Rank 0: the peer's prediction takes the place of stage1's, the cut goes to the peer.

    Args:
        module: calls both stages and returns the packed `cut`; edited in place.
        name: of the placeholder that stands for the peer's prediction.
    """
    graph = module.graph
    stage1 = call_to(module, "stage1")
    eps = next(n for n in graph.nodes if n.op == "placeholder" and n.name == name)
    stage1.replace_all_uses_with(eps)
    returned = returned_values(graph)
    graph.erase_node(stage1)
    cut = returned.pop("cut")
    output_node(graph).args = ({**returned, "cut_next": cut},)
    return RankContract(
        inputs=_drop_unread(graph, keep=(name,)),
        imports=((name, 1),),
        results=("prediction",),
        exports=(("cut_next", 1),),
    )


def keep_last_stage(module: fx.GraphModule, name: str) -> RankContract:
    """Rank 1: the kept cut takes the place of stage0's, the peer's new cut is kept next.

    Args:
        module: calls both stages and returns the prediction; edited in place.
        name: of that returned value.
    """
    graph = module.graph
    stage0 = call_to(module, "stage0")
    layout = Layout.of(stage0.meta["val"])
    module.add_submodule("unpack", UnpackCut(layout))
    with graph.inserting_before(next(n for n in graph.nodes if n.op != "placeholder")):
        cut, cut_next = graph.placeholder("cut"), graph.placeholder("cut_next")
        features = graph.call_module("unpack", (cut,))
    buffer = stage0.meta["val"][0].new_empty(layout.nbytes, dtype=torch.uint8)
    cut.meta, cut_next.meta, features.meta = {"val": buffer}, {"val": buffer}, dict(stage0.meta)
    stage0.replace_all_uses_with(features)
    graph.erase_node(stage0)
    output_node(graph).args = ({**returned_values(graph), "cut": cut_next},)
    return RankContract(
        inputs=_drop_unread(graph, keep=("cut", "cut_next")),
        state=("cut",),
        imports=(("cut_next", 0),),
        new_state=("cut",),
        exports=((name, 0),),
    )


def _drop_unread(graph: fx.Graph, keep: tuple[str, ...]) -> tuple[str, ...]:
    """Erase placeholders that nothing reads; return the names of the other ones, less `keep`."""
    placeholders = [n for n in graph.nodes if n.op == "placeholder" and n.name not in keep]
    for node in placeholders:
        if not node.users:
            graph.erase_node(node)
    return tuple(n.name for n in graph.nodes if n.op == "placeholder" and n.name not in keep)
