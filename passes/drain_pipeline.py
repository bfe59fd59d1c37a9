"""drain-pipeline: the last pipelined step, after which no rank reads features any more."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import fx

from hybridiff_compile.ir import (
    Level,
    Phase,
    StepProgram,
    clone,
    output_node,
    returned_values,
)
from hybridiff_compile.passes.base import Pass
from hybridiff_compile.passes.skew_stages import SkewStages


@dataclass(frozen=True)
class DrainPipeline(Pass):
    """Skew a cut serial program, less what makes and sends the features for a next step.

    Contract:
        `rank0(sample, e_u, eps_c from 1) -> prediction, cut_next to 1` and
        `rank1(e_c, cut, cut_next from 0) -> eps_c to 0, cut` become
        `rank0(eps_c from 1) -> prediction` and `rank1(e_c, cut) -> eps_c to 0`.
    The prediction is the same; rank 0 is idle, and the largest transfer of the step is saved.
    """

    name: ClassVar = "drain-pipeline"
    needs: ClassVar = Level.CUT
    gives: ClassVar = Level.SKEWED

    def __call__(self, program: StepProgram) -> StepProgram:
        skewed = SkewStages()(program)
        first, last = (clone(g) for g in skewed.graphs)
        for module, gone in ((first, "cut_next"), (last, "cut")):
            returned = returned_values(module.graph)
            del returned[gone]
            output_node(module.graph).args = (returned,)
            module.graph.eliminate_dead_code()
        _drop(first, keep=("eps_c",))
        _drop(last, keep=tuple(n for n in skewed.contracts[1].placeholders if n != "cut_next"))
        stage1 = last.get_submodule("stage1")
        assert isinstance(stage1, fx.GraphModule)
        held = {str(n.target) for n in stage1.graph.nodes if n.op == "get_attr"}
        of_first, of_last = skewed.contracts
        return replace(
            skewed,
            phase=Phase.DRAINED,
            graphs=(first, last),
            contracts=(
                replace(of_first, inputs=(), exports=()),
                replace(of_last, imports=(), new_state=()),
            ),
            parameters=program.parameters & held,
        )


def _drop(module: fx.GraphModule, keep: tuple[str, ...]) -> None:
    """Erase the other placeholders, and the children that no node calls."""
    for node in list(module.graph.nodes):
        if node.op == "placeholder" and node.name not in keep:
            module.graph.erase_node(node)
    called = {n.target for n in module.graph.nodes if n.op == "call_module"}
    for name in [name for name, _ in module.named_children() if name not in called]:
        module.delete_submodule(name)
