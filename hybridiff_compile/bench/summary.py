"""What was measured, summed up as one row of figures for each mode."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median, median_low
from typing import Any, get_args

import numpy as np

from hybridiff_compile.bench import scenes
from hybridiff_compile.bench.cost import forwards
from hybridiff_compile.bench.figures import Mode, PhaseName, Row
from hybridiff_compile.bench.measure import Made
from hybridiff_compile.ir import Phase
from hybridiff_compile.quality import Pictures, max_abs_error, psnr_db, to_bytes

REFERENCE: Mode = "one-device-apart"
#: Whether picture number i shows what prompt number i asks for.
Judge = Callable[[int, Made], bool]


def judge_of(captions: Sequence[str]) -> Judge:
    """Whether a picture shows what the caption of its number says."""

    def judge(index: int, made: Made) -> bool:
        return scenes.check(to_bytes(made.pictures[0]), scenes.Scene.parse(captions[index]))

    return judge


def rows(
    made: Mapping[Mode, Sequence[Made]], *, judge: Judge | None = None, **what: Any
) -> list[Row]:
    """A row for each mode; keywords as of `row`.

    Args:
        made: what each mode made, in the order of the prompts, `one-device` and the reference too.
    """
    what |= {"judge": judge, "one_device": median(m.seconds for m in made["one-device"])}
    return [row(mode, of, made[REFERENCE], **what) for mode, of in made.items()]


def row(
    mode: Mode,
    made: Sequence[Made],
    reference: Sequence[Made] | None = None,
    *,
    judge: Judge | None = None,
    one_device: float | None = None,
    **what: Any,
) -> Row:
    """Sum up one mode.

    Args:
        mode: its name.
        made: its pictures.
        reference: the pictures of REFERENCE; None if none are compared.
        judge: None when the pictures show nothing that could be judged.
        one_device: seconds of a picture in mode `one-device`; None if it was not measured.
        what: further keys of the row; they come before what is found here.
    """
    seconds = [m.seconds for m in made]
    shown = typical(made)
    batch, height, width, _ = made[0].pictures.shape
    found: dict[str, Any] = {
        "batch": batch,
        "height": height,
        "width": width,
        "dtype": str(made[0].latents.dtype).removeprefix("torch."),
        "backend": "eager",
        "steps_by_phase": steps_by_phase(shown),
        "seconds": median(seconds),
        "seconds_p90": float(np.percentile(seconds, 90)),
        "runs": len(seconds),
        "step_ms_by_phase": step_ms_by_phase(made),
    }
    if shown.report is not None:
        tau1, tau2 = shown.report.tau1, shown.report.tau2
        found |= {"bytes_sent": shown.report.bytes_sent, "tau1": tau1}
        found["k"] = None if tau1 is None or tau2 is None else tau2 - tau1
    if reference is not None and mode != REFERENCE:
        pairs = [m.latents for m in made], [m.latents for m in reference]
        found["max_abs_error"] = max_abs_error(*pairs)
        found["psnr_db"] = psnr_db(pictures(made), pictures(reference))
    if judge is not None:
        right = [judge(index, m) for index, m in enumerate(made)]
        found |= {"prompts_right": sum(right) / len(right), "prompts": len(right)}
    if one_device is not None:
        found["speedup"] = one_device / median(seconds)
    return Row(mode=mode, **{**found, **what})


def pictures(made: Sequence[Made]) -> Pictures:
    """All of them, as one array."""
    return np.concatenate([m.pictures for m in made])


def typical(made: Sequence[Made]) -> Made:
    """The one of median cost, then of median tau1, which differ from prompt to prompt."""
    starts = [(forwards(phases(m)), m.report.tau1) for m in made if m.report and m.report.tau1]
    if not starts:
        return made[0]
    middle = median_low(starts)
    return next(m for m in made if m.report and (forwards(phases(m)), m.report.tau1) == middle)


def phases(made: Made) -> list[Phase]:
    """The phase of every step; one device alone does everything in one, SERIAL."""
    if made.report is None:
        return [Phase.SERIAL] * (len(made.step_seconds) + 1)
    return [step.phase for step in made.report.steps]


def step_ms_by_phase(made: Sequence[Made]) -> dict[PhaseName, float]:
    """Median milliseconds of a step in each phase, over all pictures."""
    # The first step has no step before it from whose end it could be timed.
    return _medians(p for m in made for p in zip(phases(m)[1:], m.step_seconds, strict=True))


def driver_ms_by_phase(made: Sequence[Made]) -> dict[PhaseName, float]:
    """Median milliseconds of a denoiser call in each phase on two ranks, by the driver's clock."""
    return _medians((s.phase, s.seconds) for m in made if m.report for s in m.report.steps)


def _medians(steps: Iterable[tuple[Phase, float]]) -> dict[PhaseName, float]:
    times: dict[Any, list[float]] = defaultdict(list)
    for phase, seconds in steps:
        times[phase.kind].append(1000 * seconds)
    return {name: median(of) for name, of in times.items()}


def steps_by_phase(made: Made) -> dict[PhaseName, int]:
    """Number of steps that lie in each phase."""
    if made.report is not None:
        return made.report.steps_by_phase  # pyright: ignore[reportReturnType]
    return {name: len(phases(made)) * (name == "serial") for name in get_args(PhaseName)}
