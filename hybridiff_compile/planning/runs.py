"""What a run takes in each mode, what it waits for, and which one is fastest within a budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hybridiff_compile.bench.figures import Mode
from hybridiff_compile.config import Config, Pinned, SwitchSettings
from hybridiff_compile.ir import Phase
from hybridiff_compile.planning import solve, steps
from hybridiff_compile.planning.cuts import CutPlan
from hybridiff_compile.planning.solve import Kind


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A mode's run.

    Attributes:
        mode: its name.
        phases: of its steps.
        step_seconds: of a step in each of those phases.
        seconds: of all steps; encoders, scheduler and VAE are not in it.
        speedup: over one device.
        sent: bytes, tensors and headers; of asyncdiff tensors only, within a few percent.
        limited_by: what the steps that take most of the time wait for.
    """

    mode: Mode
    phases: tuple[Phase, ...]
    step_seconds: Mapping[Phase, float]
    seconds: float
    speedup: float
    sent: int
    limited_by: str


def step_seconds(mode: Mode, phase: Phase, t: steps.Times) -> float:
    """Seconds of a step in a phase of a mode."""
    if mode == "asyncdiff":  # its warm-up is one device's batched call, on both
        return t.both if phase is Phase.SERIAL else steps.asyncdiff(t)
    if phase is Phase.DRAINED:
        return steps.drained(t)
    if phase is Phase.FORECAST:
        return 0.0
    return steps.serial(t) if phase is Phase.SERIAL else steps.pipelined(t)


def run(mode: Mode, phases: Sequence[Phase], t: steps.Times, sent: int) -> RunPlan:
    """Add up a run, against one device that does as many steps."""
    each = {phase: step_seconds(mode, phase, t) for phase in dict.fromkeys(phases)}
    counts = Counter(phases)
    seconds = sum(each[phase] * n for phase, n in counts.items())
    heaviest = max(counts, key=lambda phase: each[phase] * counts[phase])
    limit = limited_by(mode, heaviest, t)
    return RunPlan(mode, tuple(phases), each, seconds, t.both * len(phases) / seconds, sent, limit)


def limited_by(mode: Mode, phase: Phase, t: steps.Times) -> str:
    """The longest chain of a step, and the share of the step that each link of it takes."""
    total = step_seconds(mode, phase, t)

    def chain(what: str, compute: float, transfer: float) -> str:
        shares = {what: compute, "link": transfer, "driver": total - compute - transfer}
        return ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in shares.items())

    if mode == "asyncdiff" and phase is not Phase.SERIAL:
        first, last = t.stages_of_both
        if first + 2 * t.cut >= last + 2 * t.prediction:
            return chain("stage0", first, 2 * t.cut)
        return chain("stage1", last, 2 * t.prediction)
    if mode == "asyncdiff":  # one device's call, on rank 0
        return chain("forward", t.both, 0.0)
    if phase is Phase.SERIAL:
        own, other = t.branch
        if own > other + t.prediction:
            return chain("forward", own, 0.0)
        return chain("forward", other, t.prediction)
    if phase is not Phase.DRAINED and t.stages[0] + t.cut >= t.stages[1] + t.prediction:
        return chain("stage0", t.stages[0], t.cut)
    return chain("stage1", t.stages[1], t.prediction)


def ceiling(t: steps.Times, phases: Sequence[Phase]) -> float:
    """The speed-up of a run if nothing took time but the denoiser, evenly shared."""
    branch = max(t.branch)
    share = {Phase.SERIAL: 1.0, Phase.FORECAST: 0.0}
    return t.both * len(phases) / sum(branch * share.get(phase, 0.5) for phase in phases)


@dataclass(frozen=True, slots=True)
class Recommended:
    """The fastest run within a budget of error.

    Attributes:
        settings: keywords of `optimize`.
        seconds: of all steps.
        speedup: over one device.
        cut: place of its cut in the candidates, of the fastest run that pipelines.
    """

    settings: Mapping[str, Any]
    seconds: float
    speedup: float
    cut: int


def room(family: SwitchSettings, count: int) -> dict[str, int]:
    """Steps that each mode may switch in a run: the paper's after tau_cap, ours within the ends."""
    found: dict[str, int] = {"paper": max(0, count - family.scaled(count).tau_cap)}
    for mode in ("guided", "forecast"):
        pinned = Config(mode=mode).switching(family, count)
        assert isinstance(pinned, Pinned)
        found[mode] = pinned.k
    return found


def recommended(
    count: int, t: steps.Times, cuts: Sequence[CutPlan], kinds: Sequence[Kind], budget: float
) -> Recommended:
    """The solver's choice, as what to ask `optimize` for.

    Args:
        count: steps of the run.
        t: of the parts of a step.
        cuts: candidates.
        kinds: of phases that may take the place of serial steps.
        budget: largest mean squared error of the picture.

    Raises:
        ConfigError: there is none.
    """
    serial = steps.serial(t)
    at = [solve.Cut(*(cycle + t.own for cycle in cut.cycles)) for cut in cuts]
    best = solve.solve(count, serial, at, kinds, budget)
    # A run that extrapolates needs no cut: the one to tell is that of the best which pipelines.
    piping = [replace(k, error=0.0) for k in kinds if k.name != "forecast"]
    piping = piping or [Kind("paper", 1, 0.0, count)]
    cut = solve.solve(count, serial, at, piping, budget).cut
    settings: dict[str, Any] = {"mode": "exact"}
    if best.kind is not None:
        settings = {"mode": best.kind.name, "k": best.steps}
        settings |= {"m": best.kind.m} if best.kind.name == "forecast" else {}
    return Recommended(settings, best.seconds, t.both * count / best.seconds, cut)
