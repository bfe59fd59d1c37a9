"""`hybridiff sweep`: what each way of switching costs, and how close it stays to one device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from hybridiff_compile import api
from hybridiff_compile.bench import (
    charts,
    estimate,
    figures,
    grid,
    models,
    report,
    scenes,
    schedulers,
    summary,
    tables,
)
from hybridiff_compile.bench.command import check_least, counted
from hybridiff_compile.bench.cost import by_cost, forwards
from hybridiff_compile.bench.grid import Point
from hybridiff_compile.bench.measure import APART, Contender, Made, measure
from hybridiff_compile.bench.models import DRAWING
from hybridiff_compile.bench.tables import NOT_MEASURED, number
from hybridiff_compile.errors import ConfigError
from hybridiff_compile.quality import ssim
from hybridiff_compile.style import COMPUTED, PIPELINED, QUIET

#: The most that any claim of docs/modes.md is made on.
MOST_PROMPTS = 200
LAYOUT = tables.Layout(
    columns=(
        tables.MODE,
        ("tau1", "", lambda row: number(row.tau1, "d")),
        ("k", "", lambda row: number(row.k, "d")),
        ("m", "", lambda row: number(row.m, "d")),
        ("tolerance", "", lambda row: number(row.tolerance, "g")),
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
)

COLOURS = {
    "exact": QUIET,
    "paper": PIPELINED,
    "guided": COMPUTED,
    "forecast": "#2a9d74",
    "hybrid": "#a23b8f",
    "asyncdiff": "#8a6d3b",
}


@dataclass(frozen=True, kw_only=True)
class Sweep(report.Asked):
    """What to run.

    Attributes:
        models: embedded ones; none where a pipeline of the user's is swept.
        pipe: folder of a user's pipeline.
        points: modes with their switching.
        schedulers: one after the other; none is the pipeline's own.
        steps: numbers of denoising steps, one after the other.
        prompts: pictures that each point makes.
        json: as in `Asked`; None is `figures.json` in `out`, written at the end.
    """

    models: tuple[str, ...] = DRAWING
    pipe: Path | None = None
    points: tuple[Point, ...] = grid.STANDARD
    schedulers: tuple[str, ...] = ()
    steps: tuple[int, ...] = (50,)
    prompts: int = 8
    out: Path = Path("sweep")

    def __post_init__(self) -> None:
        """Raise ConfigError for what could not be run."""
        if bool(self.models) == (self.pipe is not None):
            raise ConfigError("name either models or a pipeline: --model NAME or --pipe FOLDER.")
        models.check_names(self.models)
        models.check_names(self.schedulers, schedulers.NAMES, "scheduler")
        for steps in self.steps:
            check_least("steps", steps, 3)  # the fewest that a warm-up leaves room in
        check_least("prompts", self.prompts, 1)
        if self.prompts > MOST_PROMPTS:
            raise ConfigError(f"prompts={self.prompts} must be at most {MOST_PROMPTS}.")


@dataclass(frozen=True)
class Setting:
    """A pipeline with a sampler and a number of steps: what the rows of one table share.

    Attributes:
        call: keywords of the pipeline's call.
        what: keys of the rows.
        is_judged: whether its pictures can show what a caption says.
    """

    pipe: Any
    scheduler: Any
    call: dict[str, Any]
    what: dict[str, Any]
    is_judged: bool

    def used(self, point: Point) -> dict[str, Any]:
        """The switching of a point here, as keys of a row; ConfigError if it does not fit."""
        return point.used(api.find_denoiser(self.pipe)[1], self.what["steps"])


def run(sweep: Sweep, console: Console) -> list[figures.Row]:
    """Run every point in every setting; print the tables, write the plot and the figures.

    Raises:
        ConfigError: a point does not fit one of the runs; nothing was measured then.
    """
    found = list(settings(sweep))
    for setting in found:
        for point in sweep.points:
            setting.used(point)
    captions = scenes.prompts(sweep.prompts, scenes.PROMPT_SEED, split="unseen")
    with report.reporting(sweep, lambda rows: LAYOUT, console) as shown:
        modes = [summary.REFERENCE, *(point.mode for point in sweep.points)]
        rounds = 1 + sweep.prompts  # one warms up
        steps = [(estimate.step_seconds(s.pipe, s.call), s.what["steps"]) for s in found]
        seconds = sum(estimate.pictures(step, modes, count * rounds) for step, count in steps)
        what = f"{counted(len(found), 'setting')}, {len(modes)} points, {rounds} pictures each"
        shown.begin(seconds, what, len(found) * len(modes) * rounds)
        for setting in found:
            for row in _measure(setting, sweep.points, captions, shown.tell):
                shown.add(row)
        draw(shown.folder / "sweep.png", shown.rows)
        if sweep.json is None:
            figures.write(shown.folder / "figures.json", shown.rows, shown.where)
    return shown.rows


def settings(sweep: Sweep) -> Iterator[Setting]:
    """Every pipeline, with each of the samplers, with each number of steps."""
    for model in sweep.models or (str(sweep.pipe),):
        pipe, call = models.opened(model)
        name = model if sweep.models else Path(model).resolve().name
        made = [schedulers.build(s, pipe.scheduler, name) for s in sweep.schedulers]
        for scheduler, steps in product(made or [pipe.scheduler], sweep.steps):
            what = {"command": "sweep", "model": name, "scheduler": type(scheduler).__name__}
            what |= {"steps": steps, "guidance_scale": call.get("guidance_scale")}
            full = {**call, "num_inference_steps": steps}
            yield Setting(pipe, scheduler, full, what, model in DRAWING)


def _measure(
    setting: Setting, points: Sequence[Point], captions: Sequence[str], tell: Callable[[str], None]
) -> Iterator[figures.Row]:
    """The row of the reference, then that of each point."""
    name, pipe = setting.what["model"], setting.pipe

    def telling(what: str) -> None:
        tell(f"{name}: {what}")

    def make(mode: figures.Mode, how: Mapping[str, Any]) -> list[Made]:
        with api.optimize(pipe, **how) as model:
            ready = [Contender(mode, "", model, lambda: model.report)]
            (made,) = measure(ready, captions, tell=telling, **setting.call).values()
        if not (made[0].report and made[0].report.steps):
            raise ConfigError(
                f"{name} guided at no step, so its modes are all the same; sweep a pipeline that "
                "guides by default."
            )
        return made

    what = {"judge": summary.judge_of(captions) if setting.is_judged else None, **setting.what}
    before, pipe.scheduler = pipe.scheduler, setting.scheduler
    try:
        reference = make(summary.REFERENCE, APART)
        yield summary.row(summary.REFERENCE, reference, ranks=1, **what)
        paper: figures.Row | None = None
        for asked_for in points:
            point = asked_for.resolved(paper)
            made = make(point.mode, point.settings())
            found = {"ranks": point.gpus, **setting.used(point), **what}
            found["forwards_per_rank"] = fmean(
                forwards(summary.phases(m), point.mode) for m in made
            )
            found["ssim"] = ssim(summary.pictures(made), summary.pictures(reference))
            row = summary.row(point.mode, made, reference, **found)
            paper = row if point.mode == "paper" else paper
            yield row
    finally:
        pipe.scheduler = before


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
        pictures = counted(row.runs or 0, "picture")
        title = f"{row.model}, {scheduler}, {row.steps} steps, {pictures}"
        dot = charts.Dot(x, y, COLOURS[row.mode], f"{grid.label(row)}: {x:.2f}, {y:.1f} dB")
        clouds.setdefault(title, []).append(dot)
    words = "speed-up over exact by cost, messages free"
    charts.scatter(path, clouds, words, "PSNR against one device, dB")
