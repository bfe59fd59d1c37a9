"""The passes, and the one place that states their order."""

from __future__ import annotations

from collections.abc import Sequence

from hybridiff_compile.ir import BRANCHES, Phase, StepProgram

if __name__ != "hybridiff_compile.passes":
    raise ImportError("import hybridiff_compile.passes; `import passes` loads every class twice")

from hybridiff_compile.passes.alternate_branches import AlternateBranches
from hybridiff_compile.passes.base import Observer, Pass, run_passes
from hybridiff_compile.passes.cut_stages import CutStages
from hybridiff_compile.passes.drain_pipeline import DrainPipeline
from hybridiff_compile.passes.guard_phase import GuardPhase
from hybridiff_compile.passes.link_ranks import LinkRanks
from hybridiff_compile.passes.skew_batch import SkewBatch
from hybridiff_compile.passes.skew_stages import SkewStages
from hybridiff_compile.passes.split_cfg import SplitCfg

__all__ = [
    "AlternateBranches",
    "CutStages",
    "DrainPipeline",
    "GuardPhase",
    "LinkRanks",
    "Observer",
    "Pass",
    "SkewBatch",
    "SkewStages",
    "SplitCfg",
    "build_programs",
    "run_passes",
]


def build_programs(
    captured: StepProgram,
    mode: str,
    observers: Sequence[Observer] = (),
    *,
    staged: bool = False,
    device: str | None = None,
) -> dict[Phase, StepProgram]:
    """Rewrite a captured step into the guarded program of each phase that the mode runs.

    Args:
        captured: the step as captured, one graph; for "asyncdiff", of both branches together.
        mode: "paper" (serial, pipelined, drained), "asyncdiff" (serial, pipelined) or "guided"
            (serial, and guided on either branch), all composed of the same two stages; any other
            one is serial only.
        observers: see every pass.
        staged: cut the denoiser even where no phase needs it, so that ranks compile a half each.
        device: kind that the cut is chosen for, "cpu" or "cuda"; None is that of the weights.
    """
    link = (LinkRanks(), GuardPhase())
    if mode == "paper":
        cut = run_passes(captured, (SplitCfg(), CutStages(device=device)), observers)
        return {
            Phase.SERIAL: run_passes(cut, link, observers),
            Phase.PIPELINED: run_passes(cut, (SkewStages(), *link), observers),
            Phase.DRAINED: run_passes(cut, (DrainPipeline(), *link), observers),
        }
    if mode == "asyncdiff":
        cut = run_passes(captured, (SplitCfg(), CutStages(device=device)), observers)
        return {
            Phase.SERIAL: run_passes(cut, link, observers),
            Phase.PIPELINED: run_passes(cut, (SkewBatch(), *link), observers),
        }
    branches = BRANCHES if mode == "guided" else ()
    cut = (CutStages(keep_cut=False, device=device),) if staged or branches else ()
    split = run_passes(captured, (SplitCfg(), *cut), observers)
    phases = ((), *((AlternateBranches(branch),) for branch in branches))
    programs = [run_passes(split, (*phase, *link), observers) for phase in phases]
    return {program.phase: program for program in programs}
