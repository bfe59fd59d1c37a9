"""What was measured, summed up as one row of figures for each mode."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import median, median_low
from typing import Any, get_args

import numpy as np

from hybridiff_compile.bench.figures import Mode, PhaseName, Row
from hybridiff_compile.bench.measure import Made
from hybridiff_compile.ir import Phase
from hybridiff_compile.quality import max_abs_error, psnr_db

REFERENCE: Mode = "one-device-apart"
#: Whether picture number i shows what prompt number i asks for.
Judge = Callable[[int, Made], bool]


def rows(
    made: Mapping[Mode, Sequence[Made]], *, judge: Judge | None = None, **what: Any
) -> list[Row]:
    """Sum up each mode.

    Args:
        made: what each mode made, in the order of the prompts, `one-device` and the reference too.
        judge: None when the pictures show nothing that could be judged.
        what: what was run: command, model, scheduler, steps and so on.
    """
    one_device = median(m.seconds for m in made["one-device"])
    return [_row(mode, of, made[REFERENCE], one_device, judge, what) for mode, of in made.items()]


def _row(
    mode: Mode,
    made: Sequence[Made],
    reference: Sequence[Made],
    one_device: float,
    judge: Judge | None,
    what: Mapping[str, Any],
) -> Row:
    seconds = [m.seconds for m in made]
    shown = typical(made)
    found: dict[str, Any] = {}
    if shown.report is not None:
        found |= {"bytes_sent": shown.report.bytes_sent, "tau1": shown.report.tau1}
        if shown.report.tau1 is not None and shown.report.tau2 is not None:
            found["k"] = shown.report.tau2 - shown.report.tau1
    if mode != REFERENCE:
        found["max_abs_error"] = max_abs_error(
            [m.latents for m in made], [m.latents for m in reference]
        )
        found["psnr_db"] = psnr_db(
            np.concatenate([m.pictures for m in made]),
            np.concatenate([m.pictures for m in reference]),
        )
    if judge is not None:
        right = [judge(index, m) for index, m in enumerate(made)]
        found |= {"prompts_right": sum(right) / len(right), "prompts": len(right)}
    batch, height, width, _ = made[0].pictures.shape
    return Row(
        **what,
        mode=mode,
        batch=batch,
        height=height,
        width=width,
        dtype=str(made[0].latents.dtype).removeprefix("torch."),
        backend="eager",
        steps_by_phase=steps_by_phase(shown),
        seconds=median(seconds),
        seconds_p90=float(np.percentile(seconds, 90)),
        runs=len(seconds),
        speedup=one_device / median(seconds),
        step_ms_by_phase=step_ms_by_phase(made),
        **found,
    )


def typical(made: Sequence[Made]) -> Made:
    """The one with the median tau1, which may differ from prompt to prompt; else the first."""
    starts = [m.report.tau1 for m in made if m.report is not None and m.report.tau1 is not None]
    if not starts:
        return made[0]
    middle = median_low(starts)
    return next(m for m in made if m.report is not None and m.report.tau1 == middle)


def phases(made: Made) -> list[Phase]:
    """The phase of every step; one device alone does everything in one, SERIAL."""
    if made.report is None:
        return [Phase.SERIAL] * (len(made.step_seconds) + 1)
    return [step.phase for step in made.report.steps]


def step_ms_by_phase(made: Sequence[Made]) -> dict[PhaseName, float]:
    """Median milliseconds of a step in each phase, over all pictures."""
    times: dict[PhaseName, list[float]] = defaultdict(list)
    for m in made:
        # The first step has no step before it from whose end it could be timed.
        for phase, seconds in zip(phases(m)[1:], m.step_seconds, strict=True):
            times[phase_name(phase)].append(1000 * seconds)
    return {name: median(of) for name, of in times.items()}


def phase_name(phase: Phase) -> PhaseName:
    """A phase's name in the figures."""
    return "pipelined" if phase is Phase.PIPELINED else "serial"


def steps_by_phase(made: Made) -> dict[PhaseName, int]:
    """Number of steps in each phase."""
    counts = Counter(phase_name(phase) for phase in phases(made))
    return {name: counts[name] for name in get_args(PhaseName)}
