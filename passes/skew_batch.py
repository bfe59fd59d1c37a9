"""skew-batch: both branches in one batch, pipelined by stages as AsyncDiff does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import fx

from hybridiff_compile.ir import Level, Phase, StepProgram, clone, output_node
from hybridiff_compile.passes.base import Pass
from hybridiff_compile.passes.skew_stages import call_to, keep_first_stage, keep_last_stage


@dataclass(frozen=True)
class SkewBatch(Pass):
    """Turn a cut step of both branches together into one stage a rank, on stale features.

    Contract, with all tensors of the batch 2B:
        `rank0(sample, e) -> prediction, cut` and `rank1() -> nothing` become
        `rank0(sample, e, eps from 1) -> prediction, cut_next to 1` (stage0 only) and
        `rank1(e, cut, cut_next from 0) -> eps to 0, cut` (stage1 only).
    Rank 1 works on the cut of the step before, so the prediction is one of stale features with the
    time and text of this step (Chen et al. 2024, AsyncDiff). Guidance keeps both branches.
    """

    name: ClassVar = "skew-batch"
    needs: ClassVar = Level.CUT
    gives: ClassVar = Level.SKEWED

    def __call__(self, program: StepProgram) -> StepProgram:
        whole, _ = program.graphs
        first, last = _importing(whole), _exporting(whole)
        return replace(
            program,
            phase=Phase.PIPELINED,
            level=Level.SKEWED,
            graphs=(first, last),
            contracts=(keep_first_stage(first, "eps"), keep_last_stage(last, "eps")),
        )


def _importing(whole: fx.GraphModule) -> fx.GraphModule:
    """A copy with a placeholder that the peer's prediction will arrive in."""
    module = clone(whole)
    graph = module.graph
    with graph.inserting_before(next(n for n in graph.nodes if n.op != "placeholder")):
        eps = graph.placeholder("eps")
    eps.meta = {"val": call_to(module, "stage1").meta["val"]}
    return module


def _exporting(whole: fx.GraphModule) -> fx.GraphModule:
    """A copy that returns what stage1 makes, and nothing that rank 0 makes of it or keeps."""
    module = clone(whole)
    output_node(module.graph).args = ({"eps": call_to(module, "stage1")},)
    module.graph.eliminate_dead_code()
    return clone(module)  # a graph gives no name twice, and the packed buffer's was `cut`
