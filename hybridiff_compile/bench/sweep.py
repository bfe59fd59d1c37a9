"""`hybridiff sweep`: what each way of switching costs, and how close it stays to one device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from hybridiff_compile import api
from hybridiff_compile.bench import (
    asked,
    figures,
    grid,
    models,
    scenes,
    schedulers,
    summary,
    sweep_plot,
    sweep_table,
    tables,
)
from hybridiff_compile.bench.cost import forwards
from hybridiff_compile.bench.grid import Point
from hybridiff_compile.bench.measure import Contender, Made, measure
from hybridiff_compile.config import SwitchSettings
from hybridiff_compile.errors import ConfigError
from hybridiff_compile.quality import ssim, to_bytes

#: The models whose pictures show something; the pictures of the other are noise.
DRAWING = ("tiny-sdxl", "tiny-sd3")
PROMPT_SEED = 1
#: The most that any claim of docs/modes.md is made on.
MOST_PROMPTS = 200


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
        json: file for the figures; None is `figures.json` in `out`.
    """

    names: tuple[str, ...] = DRAWING
    pipe: Path | None = None
    points: tuple[Point, ...] = grid.STANDARD
    schedulers: tuple[str, ...] = ()
    steps: tuple[int, ...] = (50,)
    prompts: int = 8
    out: Path = Path("sweep")
    json: Path | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for what could not be run."""
        if bool(self.names) == (self.pipe is not None):
            raise ConfigError("name either models or a pipeline: --model NAME or --pipe FOLDER.")
        asked.check_names(self.names)
        schedulers.check_names(self.schedulers)
        for steps in self.steps:
            asked.check_least("steps", steps, 3)  # the fewest that a warm-up leaves room in
        asked.check_least("prompts", self.prompts, 1)
        if self.prompts > MOST_PROMPTS:
            raise ConfigError(f"prompts={self.prompts} must be at most {MOST_PROMPTS}.")

    @property
    def file(self) -> Path:
        """Where the figures go."""
        return self.json or self.out / "figures.json"


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
    _check(sweep.points, settings)
    asked.make_folders(sweep.out, sweep.file)
    captions = scenes.prompts(sweep.prompts, PROMPT_SEED, split="unseen")
    where = figures.environment(threads_per_rank=1)
    rows: list[figures.Row] = []
    with tables.progress(console) as progress:
        for setting in settings:
            for row in _measure(setting, sweep.points, captions, progress):
                rows.append(row)
                figures.write(sweep.file, rows, where)  # all that there is, if it is interrupted
    sweep_table.show(rows, where, console)
    table, plot = sweep.out / "table.md", sweep.out / "sweep.png"
    table.write_text(tables.markdown(rows, sweep_table.COLUMNS) + "\n", encoding="utf-8")
    sweep_plot.draw(plot, rows)
    for path in (table, plot, sweep.file):
        console.print(f"wrote {path}", style="dim", soft_wrap=True, highlight=False)
    return rows


def _settings(sweep: Sweep) -> Iterator[_Setting]:
    """Every pipeline, with each of the samplers, with each number of steps."""
    for name in sweep.names or (None,):
        if name is None:
            assert sweep.pipe is not None
            pipe: Any = models.load_folder(sweep.pipe)
            name, call, is_judged = sweep.pipe.resolve().name, {}, False
        else:
            pipe, call = models.load(name), models.call_settings(name)
            is_judged = name in DRAWING
        pipe.set_progress_bar_config(disable=True)
        made = [schedulers.build(s, pipe.scheduler, name) for s in sweep.schedulers]
        for scheduler in made or [pipe.scheduler]:
            for steps in sweep.steps:
                yield _Setting(name, pipe, scheduler, steps, call, is_judged)


def _check(points: Sequence[Point], settings: Sequence[_Setting]) -> None:
    for setting in settings:
        for point in points:
            point.used(setting.family, setting.steps)


def _measure(
    setting: _Setting, points: Sequence[Point], captions: Sequence[str], progress: Progress
) -> Iterator[figures.Row]:
    """The row of the reference, then that of each point."""
    count = (len(points) + 1) * (len(captions) + 1)  # a warm-up picture each
    task = progress.add_task(setting.name, total=count)
    before, setting.pipe.scheduler = setting.pipe.scheduler, setting.scheduler

    def make(mode: figures.Mode, how: dict[str, Any]) -> list[Made]:
        progress.update(task, description=f"{setting.name}: {mode}")
        with api.optimize(setting.pipe, **how) as model:
            ready = Contender(mode, "", model, lambda: model.report)
            call = {**setting.call, "num_inference_steps": setting.steps}
            done = measure([ready], captions, progress=lambda _: progress.advance(task), **call)
        report = done[mode][0].report
        if report is None or not report.steps:
            raise ConfigError(
                f"{setting.name} guided at no step, so its modes are all the same; sweep a "
                "pipeline that guides by default."
            )
        return done[mode]

    def judge(index: int, made: Made) -> bool:
        return scenes.check(to_bytes(made.pictures[0]), scenes.Scene.parse(captions[index]))

    what = {"command": "sweep", **setting.what()}
    judged = judge if setting.is_judged else None
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
    progress.update(task, description=setting.name)


def _beside(mode: str, made: Sequence[Made], reference: Sequence[Made]) -> dict[str, Any]:
    """What a sweep's rows tell besides: the cost, and a figure that needs another package."""
    pictures, wanted = (np.concatenate([m.pictures for m in of]) for of in (made, reference))
    cost = fmean(forwards(summary.phases(m), mode) for m in made)
    return {"forwards_per_rank": cost, "ssim": ssim(pictures, wanted)}
