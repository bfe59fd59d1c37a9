"""`hybridiff bench`: every way of making a picture, or of compiling it, in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from hybridiff_compile.arguments import check_choice
from hybridiff_compile.bench import bench_view, estimate, models, report, summary
from hybridiff_compile.bench.bench_view import label
from hybridiff_compile.bench.command import check_least, counted
from hybridiff_compile.bench.entrant import Entrant, Start, entered
from hybridiff_compile.bench.figures import Backend, Mode, Row, Scope, Variant
from hybridiff_compile.bench.measure import Made, in_turn
from hybridiff_compile.bench.ready import Job
from hybridiff_compile.errors import ConfigError

RANKS: tuple[Mode, ...] = ("exact", "paper", "hybrid", "asyncdiff")
BACKENDS: tuple[Backend, ...] = ("eager", "inductor")
#: The rows of `--compile`, and those of a quick run: what users meet.
COMPILED: tuple[Variant, ...] = (
    ("one-device", "eager", None),
    ("one-device", "inductor", None),
    ("exact", "inductor", "stage"),
    ("exact", "inductor", "regional"),
    ("exact", "inductor", "whole"),
    ("exact", "aot", "stage"),
    ("paper", "inductor", "stage"),
    ("paper", "inductor", "regional"),
    ("paper", "inductor", "whole"),
    ("paper", "aot", "stage"),
)
QUICK: tuple[Variant, ...] = (COMPILED[0], COMPILED[1], COMPILED[3])


@dataclass(frozen=True, kw_only=True)
class Bench(report.Asked):
    """What to run.

    Attributes:
        models: names of embedded pipelines, or folders, in the order of the tables.
        compiles: it is compiling that is measured: cold, then warm or from a package. Rows do not
            take turns then, and a third of the steps of the paper's mode is pipelined.
        backend: of the modes on two ranks, unless compiling is measured.
        steps: denoising steps of a picture.
        runs: pictures of each row after one that warms up.
    """

    models: tuple[str, ...] = models.NAMES
    compiles: bool = False
    backend: Backend = "inductor"
    steps: int = 50
    runs: int = 3
    out: Path = Path("bench")

    def __post_init__(self) -> None:
        """Raise ConfigError for a model that does not exist or a count that measures nothing."""
        folders = [name for name in self.models if Path(name).is_dir()]
        models.check_names([n for n in self.models if n not in folders], what="model or folder")
        if len({Path(name).resolve().name for name in self.models}) < len(self.models):
            raise ConfigError(
                f"models={', '.join(self.models)}: two have one name in the tables; rename one."
            )
        check_choice("backend", self.backend, BACKENDS)
        # A step is timed from the end of the one before it, and the paper's mode needs three. In
        # thirds it needs two of each, so that one of them is not the step in which phases swap.
        check_least("steps", self.steps, 6 if self.compiles else 3)
        check_least("runs", self.runs, 1)

    def variants(self) -> Sequence[Variant]:
        """The rows of a model; ranks that are timed compile the repeated blocks."""
        if self.compiles:
            return QUICK if self.thinned else COMPILED
        scope: Scope | None = None if self.backend == "eager" else "regional"
        one: list[Variant] = [("one-device", backend, None) for backend in BACKENDS]
        if self.thinned and self.backend == "eager":
            one = one[:1]
        apart: Variant = ("one-device-apart", "eager", None)
        return [*one, apart, *((mode, self.backend, scope) for mode in RANKS)]


def run(bench: Bench, console: Console) -> list[Row]:
    """Measure every row of every model; print the tables, write them, the chart and the figures.

    Raises:
        HybridiffError: a row could not be measured; the figures of those before it are kept.
    """
    variants, rounds = bench.variants(), 1 + bench.runs
    layout, name = bench_view.layout(bench.compiles), "compile" if bench.compiles else "latency"
    with report.reporting(bench, layout, console, name) as made:
        each = [estimate.step_seconds(*models.opened(model)) for model in bench.models]
        steps = bench.steps * rounds
        seconds = sum(estimate.rows(step, variants, steps, bench.compiles) for step in each)
        rows = f"{counted(len(each), 'model')}, {counted(len(variants), 'row')}"
        said = "each compiled anew" if bench.compiles else f"{rounds} pictures each"
        again = bench.compiles * sum(backend == "inductor" for _, backend, _ in variants)
        total = len(each) * (len(variants) * (1 + rounds) + again)
        made.begin(seconds, f"{rows}, {said}", total)
        for model in bench.models:
            for found in measured(bench, model, made.tell):
                made.add(*found)
        bench_view.draw(made.folder / f"{name}.png", made.rows, made.where, bench.compiles)
    return made.rows


def measured(
    bench: Bench, model: str, tell: Callable[[str], None], start: Start = entered
) -> Iterator[list[Row]]:
    """The rows of a model: all of them after taking turns, or one by one.

    Args:
        bench: what to run.
        model: one of its models.
        tell: told in a few words what begins, once for each preparation and picture.
        start: opens a row's process.
    """
    name = model if model in models.NAMES else Path(model).resolve().name
    variants, one_device = bench.variants(), dict[Backend, float]()
    for group in [[variant] for variant in variants] if bench.compiles else [variants]:
        with tempfile.TemporaryDirectory(prefix="hybridiff-bench-") as folder:
            jobs = _jobs(bench, model, group, Path(folder))
            done = _take_turns(jobs, bench.runs, lambda what: tell(f"{name}: {what}"), start)
            reference = done.get(label(summary.REFERENCE, "eager"))
            rows = []
            for words, (entrant, made) in done.items():
                job = entrant.job
                what = {**_what(job), **entrant.taken, "scheduler": entrant.scheduler}
                ms = what.pop("denoiser_ms", None)
                if job.mode == "one-device":
                    one_device[job.backend] = median(m.seconds for m in made)
                if bench.compiles:
                    driver = {"serial": ms} if ms else summary.driver_ms_by_phase(made)
                    what["step_ms_by_phase"] = driver
                if bench.compiles and job.backend == "inductor":
                    tell(f"{name}: {words}, once more")
                    with start(job) as again:
                        again.make(0)
                    what["compile_seconds_warm"] = again.taken["compile_seconds_cold"]
                what |= {"model": name, "one_device": one_device.get(job.backend)}
                rows.append(summary.row(job.mode, made, reference and reference[1], **what))
        yield rows


def _jobs(bench: Bench, model: str, group: Sequence[Variant], folder: Path) -> dict[str, Job]:
    """What to measure, by the labels of the rows; each has an empty cache of its own."""
    trained = models.call_settings(model) if model in models.NAMES else {}
    call, jobs = {**trained, "num_inference_steps": bench.steps}, dict[str, Job]()
    for i, (mode, backend, scope) in enumerate(group):
        words = label(mode, backend, scope if bench.compiles else None)
        switching = schedule(mode, bench.steps) if bench.compiles else {}
        jobs[words] = Job(model, mode, backend, scope, call, folder / f"{i}", switching)
    return jobs


def schedule(mode: Mode, steps: int) -> dict[str, int]:
    """The paper's mode in thirds, serial, pipelined, serial: both phases, swapped twice."""
    return {"tau1": steps // 3, "k": steps // 3} if mode == "paper" else {}


def _take_turns(
    jobs: Mapping[str, Job], runs: int, tell: Callable[[str], None], start: Start
) -> dict[str, tuple[Entrant, list[Made]]]:
    """What each row's process made; all of them have ended."""
    with ExitStack() as stack:
        entrants = dict[str, Entrant]()
        for words, job in jobs.items():  # alone, so that each compiles alone
            tell(f"{words}, preparing")
            entrants[words] = stack.enter_context(start(_exported(job, start)))
        made = in_turn({words: e.make for words, e in entrants.items()}, runs, tell)
    return {words: (entrants[words], made[words]) for words in jobs}


def _exported(job: Job, start: Start) -> Job:
    """A job with its package, which another process has written."""
    if job.backend != "aot":
        return job
    job = replace(job, package=job.cache / "package")
    with start(replace(job, exports=True)):
        pass
    # Another cache, an empty one: loading must not need what exporting compiled.
    return replace(job, cache=job.cache / "of-load")


def _what(job: Job) -> dict[str, Any]:
    """What was run, as keys of a row."""
    return {
        "command": "bench",
        "backend": job.backend,
        "scope": job.scope,
        "steps": job.call["num_inference_steps"],
        "guidance_scale": job.call.get("guidance_scale"),
    }
