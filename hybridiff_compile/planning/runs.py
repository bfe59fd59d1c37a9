"""What a run takes in each mode, what it waits for, and which one is fastest within a budget.

Within a step the ranks work side by side, and it ends when the driver has the prediction and its
own values have left. A rank sends after it has computed. All here are pure functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from hybridiff_compile.bench.figures import Mode, PhaseName, Row
from hybridiff_compile.config import Config, Controlled, Pinned, SwitchSettings
from hybridiff_compile.ir import Phase
from hybridiff_compile.planning import solve
from hybridiff_compile.planning.cuts import CutPlan
from hybridiff_compile.planning.solve import Kind
from hybridiff_compile.runtime.switching import counted, phase_of, pinned_phase

#: The modes that a plan compares, beside one device.
MODES: tuple[Mode, ...] = ("exact", "paper", "guided", "forecast", "hybrid", "asyncdiff")
#: What steps are counted as, in the order of tables.
KINDS: tuple[PhaseName, ...] = get_args(PhaseName)


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of the parts of a step, each alone.

    Attributes:
        both: one device, both branches in one call of 2B.
        branch: each rank's forward of batch B, the whole denoiser.
        stages: A and B, stage0 on rank 0 and stage1 on rank 1, batch B.
        stages_of_both: the same at batch 2B.
        cut: X, the crossing tensors of one branch on the link, latency included.
        prediction: E, one branch's prediction on the link.
        own: what the driver adds to a step on two ranks: messages, guard, Python.
    """

    both: float
    branch: tuple[float, float]
    stages: tuple[float, float]
    stages_of_both: tuple[float, float]
    cut: float
    prediction: float
    own: float = 0.0


def phases(mode: Mode, family: SwitchSettings, steps: int, k: int | None = None) -> list[Phase]:
    """The phase of every step.

    What depends on a picture is taken at its worst or best, as said: the paper's mode begins at
    tau_cap; hybrid extrapolates all that its m allows between the first and the last steps.

    Args:
        mode: one of MODES.
        family: the paper's constants for the kind of denoiser.
        steps: of the run.
        k: switched steps; None is the mode's own.

    Raises:
        ConfigError: the switched steps would not end within the run.
    """
    chosen: Any = mode
    settings = Config(mode=chosen, k=k).switching(family, steps)
    if isinstance(settings, Controlled):
        count = max(0, steps - settings.warm - settings.tail)
        settings = Pinned("forecast", settings.warm, count, settings.m, settings.estimator)
    if isinstance(settings, Pinned):
        return [pinned_phase(i, settings) for i in range(steps)]
    if settings is not None and settings.tau1 is None:
        settings = replace(settings, tau1=settings.tau_cap)
    tau1 = None if settings is None else settings.tau1
    return [phase_of(i, tau1, settings) for i in range(steps)]


def chain(mode: Mode, phase: Phase, t: Times) -> dict[str, float]:
    """The longest chain of work in a step of a phase of a mode, which the step waits for.

    Returns:
        Seconds of what computes ("forward", "stage0" or "stage1"), of the "link" behind it, and of
        the "driver" around both, in this order; nothing for an extrapolated step.
    """
    if phase is Phase.FORECAST:
        return {}
    if mode == "asyncdiff" and phase is Phase.SERIAL:  # its warm-up is one device's batched call
        return {"forward": t.both, "link": 0.0, "driver": 0.0}
    if phase is Phase.SERIAL:  # each rank runs one branch, rank 1 sends its prediction
        ways = [("forward", t.branch[1], t.prediction), ("forward", t.branch[0], 0.0)]
    elif mode == "asyncdiff":  # each rank runs its stage on both branches, on stale features
        first, last = t.stages_of_both
        ways = [("stage0", first, 2 * t.cut), ("stage1", last, 2 * t.prediction)]
    else:  # each rank runs its stage on one branch
        ways = [("stage0", t.stages[0], t.cut), ("stage1", t.stages[1], t.prediction)]
    if phase is Phase.DRAINED:  # rank 1 alone works
        ways = ways[1:]
    what, compute, transfer = max(ways, key=lambda way: way[1] + way[2])
    return {what: compute, "link": transfer, "driver": t.own}


def step_seconds(mode: Mode, phase: Phase, t: Times) -> float:
    """Seconds of a step in a phase of a mode."""
    return sum(chain(mode, phase, t).values())


def limited_by(mode: Mode, phases: Sequence[Phase], t: Times) -> str:
    """What the steps that take most of a run's time wait for, and the share of each part of it."""
    counts = Counter(phases)
    heaviest = max(counts, key=lambda phase: counts[phase] * step_seconds(mode, phase, t))
    parts = chain(mode, heaviest, t)
    total = sum(parts.values())
    return ", ".join(f"{what} {seconds / total:.0%}" for what, seconds in parts.items())


def row(
    mode: Mode, phases: Sequence[Phase], t: Times, one: float, rest: float = 0.0, **what: Any
) -> Row:
    """A mode's run on two ranks, as a row of figures.

    Args:
        mode: its name.
        phases: of its steps.
        t: of the parts of a step.
        one: seconds of it on one device.
        rest: seconds of it beside its steps: encoders, scheduler and VAE.
        what: further keys.
    """
    counts, lie = Counter(phases), Counter(counted(phases))
    each = {phase: step_seconds(mode, phase, t) for phase in counts}
    seconds = rest + sum(each[phase] * n for phase, n in counts.items())
    # A kind of several phases has the time of most of its steps.
    most = {phase.kind: phase for phase, _ in reversed(counts.most_common())}
    ms: Any = {kind: 1e3 * each[most[kind]] for kind in KINDS if kind in most}
    return Row(
        mode=mode,
        ranks=2,
        steps_by_phase={kind: lie[kind] for kind in KINDS},
        predicted_step_ms_by_phase=ms,
        predicted_seconds=seconds,
        predicted_speedup=one / seconds,
        **what,
    )


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
    count: int, t: Times, cuts: Sequence[CutPlan], kinds: Sequence[Kind], budget: float
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
    serial = step_seconds("exact", Phase.SERIAL, t)
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
