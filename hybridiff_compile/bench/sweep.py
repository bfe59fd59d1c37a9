"""`hybridiff sweep`: what each way of switching costs, and how close it stays to one device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from rich.console import Console

from hybridiff_compile import api
from hybridiff_compile.bench import (
    charts,
    command,
    estimate,
    figures,
    grid,
    models,
    scenes,
    schedulers,
    summary,
    tables,
)
from hybridiff_compile.bench.command import check_least
from hybridiff_compile.bench.cost import by_cost, forwards
from hybridiff_compile.bench.grid import Point
from hybridiff_compile.bench.measure import Contender, Made, measure
from hybridiff_compile.bench.models import DRAWING
from hybridiff_compile.bench.tables import NOT_MEASURED, number
from hybridiff_compile.config import SwitchSettings
from hybridiff_compile.errors import ConfigError
from hybridiff_compile.quality import ssim
from hybridiff_compile.style import COMPUTED, PIPELINED, QUIET

#: The most that any claim of docs/modes.md is made on.
MOST_PROMPTS = 200
LAYOUT = tables.Layout(
    columns=(
        tables.MODE,
        ("scheduler", "", lambda row: (row.scheduler or "-").removesuffix("Scheduler")),
        ("steps", "", lambda row: number(row.steps, "d")),
        ("tau1", "", lambda row: number(row.tau1, "d")),
        ("k", "", lambda row: number(row.k, "d")),
        ("m", "", lambda row: number(row.m, "d")),
        ("toler-", "ance", lambda row: number(row.tolerance, "g")),
        ("estimator", "", lambda row: row.estimator or NOT_MEASURED),
        ("serial / pip.", "/ forecast", lambda row: tables.by_phase(row.steps_by_phase, "d")),
        ("cost", "forwards", lambda row: number(row.forwards_per_rank, ".1f")),
        ("speed-up", "by cost", lambda row: number(by_cost(row), ".2f")),
        tables.PICTURE,
        ("ranks", "", lambda row: number(row.ranks, "d")),
        tables.PSNR,
        tables.ERROR,
        tables.RIGHT,
    ),
    footnote=(
        "Steps: those that lie in each phase, of the picture with the median cost. Cost: forwards "
        "of one branch that each of two ranks runs for a picture (a serial step 1, a pipelined one "
        "1/2, an extrapolated one 0; of asyncdiff, which runs both branches in one batch, twice "
        "that), mean over pictures; speed-up by cost: against exact, which runs one at every step, "
        "if messages cost nothing. Picture: measured seconds, by as many processes as `ranks` "
        "says; extrapolating on one gives what it gives on two, but for rounding. PSNR and error "
        "are against one-device-apart, same prompts and seeds."
    ),
    titled=("scheduler", "steps"),
)

COLOURS = {
    "exact": QUIET,
    "paper": PIPELINED,
    "guided": COMPUTED,
    "forecast": "#2a9d74",
    "hybrid": "#a23b8f",
    "asyncdiff": "#8a6d3b",
}


@dataclass(frozen=True)
class Sweep:
    """What to run.

    Attributes:
        names: embedded models; none where a pipeline of the user's is swept.
        pipe: folder of a user's pipeline.
        points: modes with their switching.
        schedulers: one after the other; none is the pipeline's own.
        steps: numbers of denoising steps, one after the other.
        prompts: pictures that each point makes.
        out: folder for the plot and the table.
        json: file for the figures, written after every row; None is `figures.json` in `out`,
            written at the end.
        thinned: what is left out to be quick, in words.
    """

    names: tuple[str, ...] = DRAWING
    pipe: Path | None = None
    points: tuple[Point, ...] = grid.STANDARD
    schedulers: tuple[str, ...] = ()
    steps: tuple[int, ...] = (50,)
    prompts: int = 8
    out: Path = Path("sweep")
    json: Path | None = None
    thinned: str = ""

    def __post_init__(self) -> None:
        """Raise ConfigError for what could not be run."""
        if bool(self.names) == (self.pipe is not None):
            raise ConfigError("name either models or a pipeline: --model NAME or --pipe FOLDER.")
        models.check_names(self.names)
        models.check_names(self.schedulers, schedulers.NAMES, "scheduler")
        for steps in self.steps:
            check_least("steps", steps, 3)  # the fewest that a warm-up leaves room in
        check_least("prompts", self.prompts, 1)
        if self.prompts > MOST_PROMPTS:
            raise ConfigError(f"prompts={self.prompts} must be at most {MOST_PROMPTS}.")


@dataclass(frozen=True)
class _Setting:
    """A pipeline with a sampler and a number of steps: what the points of one table share.

    Attributes:
        call: keywords of the pipeline's call that the model was trained for.
        is_judged: whether its pictures can show what a caption says.
    """

    name: str
    pipe: Any
    scheduler: Any
    steps: int
    call: dict[str, Any]
    is_judged: bool

    @property
    def family(self) -> SwitchSettings:
        return api.find_denoiser(self.pipe)[1]

    def what(self) -> dict[str, Any]:
        """Keys that the rows have in common."""
        guidance = {k: v for k, v in self.call.items() if k == "guidance_scale"}
        scheduler = type(self.scheduler).__name__
        return {"model": self.name, "scheduler": scheduler, "steps": self.steps, **guidance}


def run(sweep: Sweep, console: Console) -> list[figures.Row]:
    """Run every point in every setting; print the tables, write the plot and the figures.

    Raises:
        ConfigError: a point does not fit one of the runs; nothing was measured then.
    """
    settings = list(_settings(sweep))
    for setting in settings:
        for point in sweep.points:
            point.used(setting.family, setting.steps)
    captions = scenes.prompts(sweep.prompts, scenes.PROMPT_SEED, split="unseen")
    where, rows = figures.environment(threads_per_rank=1), list[figures.Row]()
    with command.output(sweep.out, sweep.json, console) as folder:
        modes = [summary.REFERENCE, *(point.mode for point in sweep.points)]
        rounds = 1 + sweep.prompts  # one warms up
        each = [(estimate.step_seconds(s.pipe, s.call), s.steps * rounds) for s in settings]
        seconds = [estimate.pictures(step, modes, steps) for step, steps in each]
        what = (
            f"{command.counted(len(each), 'setting')}, {len(modes)} points, {rounds} pictures each"
        )
        command.announce(console, sum(seconds), what)
        with command.Telling(console, len(settings) * len(modes) * rounds) as tell:
            for setting in settings:
                for row in _measure(setting, sweep.points, captions, tell):
                    rows.append(row)
                    tell.row(tables.line(row, LAYOUT))
                    if sweep.json is not None:
                        figures.write(sweep.json, rows, where)
        tables.show(rows, LAYOUT, console, sweep.thinned)
        tables.close(folder / "table.md", rows, LAYOUT, where, console, sweep.thinned)
        draw(folder / "sweep.png", rows)
        if sweep.json is None:
            figures.write(folder / "figures.json", rows, where)
    return rows


def draw(path: Path, rows: Sequence[figures.Row]) -> None:
    """Write one PNG: speed-up by cost to the right, fidelity upwards, a panel for each setting.

    Rows without cost or PSNR, such as the reference, are left out.
    """
    clouds: dict[str, list[charts.Dot]] = {}
    for row in rows:
        x, y = by_cost(row), row.psnr_db
        if x is None or y is None:
            continue
        scheduler = (row.scheduler or "").removesuffix("Scheduler")
        title = f"{row.model}, {scheduler}, {row.steps} steps, {row.runs} pictures"
        dot = charts.Dot(x, y, COLOURS[row.mode], f"{grid.label(row)}: {x:.2f}, {y:.1f} dB")
        clouds.setdefault(title, []).append(dot)
    words = "speed-up over exact by cost, messages free"
    charts.scatter(path, clouds, words, "PSNR against one device, dB")


def _settings(sweep: Sweep) -> Iterator[_Setting]:
    """Every pipeline, with each of the samplers, with each number of steps."""
    for model in sweep.names or (str(sweep.pipe),):
        pipe, call = models.opened(model)
        name = model if sweep.names else Path(model).resolve().name
        made = [schedulers.build(s, pipe.scheduler, name) for s in sweep.schedulers]
        for scheduler in made or [pipe.scheduler]:
            for steps in sweep.steps:
                yield _Setting(name, pipe, scheduler, steps, call, model in DRAWING)


def _measure(
    setting: _Setting, points: Sequence[Point], captions: Sequence[str], tell: command.Telling
) -> Iterator[figures.Row]:
    """The row of the reference, then that of each point."""
    before, setting.pipe.scheduler = setting.pipe.scheduler, setting.scheduler

    def make(mode: figures.Mode, how: dict[str, Any]) -> list[Made]:
        with api.optimize(setting.pipe, **how) as model:
            ready = Contender(mode, "", model, lambda: model.report)
            call = {**setting.call, "num_inference_steps": setting.steps}
            done = measure(
                [ready], captions, tell=lambda what: tell(f"{setting.name}: {what}"), **call
            )
        report = done[mode][0].report
        if report is None or not report.steps:
            raise ConfigError(
                f"{setting.name} guided at no step, so its modes are all the same; sweep a "
                "pipeline that guides by default."
            )
        return done[mode]

    what = {"command": "sweep", **setting.what()}
    judged = summary.judge_of(captions) if setting.is_judged else None
    try:
        reference = make(summary.REFERENCE, {"gpus": 1, "mode": "exact"})
        yield summary.row(summary.REFERENCE, reference, reference, judge=judged, ranks=1, **what)
        paper: figures.Row | None = None
        for asked_for in points:
            point = asked_for.resolved(paper)
            made = make(point.mode, point.settings())
            found = {"ranks": point.gpus, **point.used(setting.family, setting.steps), **what}
            found |= _beside(point.mode, made, reference)
            row = summary.row(point.mode, made, reference, judge=judged, **found)
            paper = row if point.mode == "paper" else paper
            yield row
    finally:
        setting.pipe.scheduler = before


def _beside(mode: str, made: Sequence[Made], reference: Sequence[Made]) -> dict[str, Any]:
    """What a sweep's rows tell besides: the cost, and a figure that needs another package."""
    pictures, wanted = (np.concatenate([m.pictures for m in of]) for of in (made, reference))
    cost = fmean(forwards(summary.phases(m), mode) for m in made)
    return {"forwards_per_rank": cost, "ssim": ssim(pictures, wanted)}
