"""`hybridiff bench`: every way of making a picture, in turn, in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from hybridiff_compile.bench import (
    asked,
    figures,
    latency_chart,
    latency_table,
    models,
    summary,
    tables,
)
from hybridiff_compile.bench.figures import Backend, Mode, Row, Scope
from hybridiff_compile.bench.latency_row import Entrant, Job, entered
from hybridiff_compile.bench.measure import Made
from hybridiff_compile.errors import ConfigError

RANKS: tuple[Mode, ...] = ("exact", "paper", "hybrid", "asyncdiff")
BACKENDS: tuple[Backend, ...] = ("eager", "inductor")

#: Starts the process of a row.
Start = Callable[[Job], Any]
Variant = tuple[Mode, Backend, Scope | None]


@dataclass(frozen=True)
class LatencyBench:
    """What to run.

    Attributes:
        models: names of embedded pipelines, or folders, in the order of the tables.
        backend: of the modes on two ranks; one device is measured in each.
        steps: denoising steps of a picture.
        runs: pictures of each row after one that warms up.
        out: folder for the table and the chart.
        json: file for the figures; None writes none.
    """

    models: tuple[str, ...] = models.NAMES
    backend: Backend = "inductor"
    steps: int = 50
    runs: int = 3
    out: Path = Path("bench")
    json: Path | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for a model that does not exist or a count that measures nothing."""
        folders = [name for name in self.models if Path(name).is_dir()]
        asked.check_names([name for name in self.models if name not in folders])
        for folder in folders:
            if not (Path(folder) / "model_index.json").is_file():
                raise ConfigError(f"{folder} holds no pipeline: no model_index.json is in it.")
        if len({Path(name).resolve().name for name in self.models}) < len(self.models):
            raise ConfigError(
                f"models={', '.join(self.models)}: two have one name in the tables; rename one."
            )
        if self.backend not in BACKENDS:
            raise ConfigError(f"backend={self.backend!r}: choose one of {', '.join(BACKENDS)}.")
        # A step is timed from the end of the one before it, and the paper's mode needs three.
        asked.check_least("steps", self.steps, 3)
        asked.check_least("runs", self.runs, 1)

    def variants(self) -> list[Variant]:
        """The rows of a model; compiled ranks compile the repeated blocks."""
        scope: Scope | None = None if self.backend == "eager" else "regional"
        one: list[Variant] = [("one-device", backend, None) for backend in BACKENDS]
        apart: Variant = ("one-device-apart", "eager", None)
        return [*one, apart, *((mode, self.backend, scope) for mode in RANKS)]


def run(bench: LatencyBench, console: Console) -> list[Row]:
    """Measure every row of every model; print the tables, write them, the chart and the figures.

    Raises:
        HybridiffError: a row could not be measured; the figures of the models before are kept.
    """
    asked.make_folders(bench.out, bench.json)
    where = figures.environment(threads_per_rank=1)
    rows: list[Row] = []
    with tables.progress(console) as progress:
        count = len(bench.variants()) * (2 + bench.runs)
        task = progress.add_task("starting", total=count * len(bench.models))

        def tell(text: str) -> None:
            progress.update(task, advance=1, description=text)

        for model in bench.models:
            rows += measured(bench, model, tell)
            if bench.json is not None:
                figures.write(bench.json, rows, where)
    latency_table.show(rows, where, console)
    table, chart = bench.out / "latency.md", bench.out / "latency.png"
    table.write_text(latency_table.markdown(rows, where), encoding="utf-8")
    latency_chart.draw(chart, rows, where)
    for path in (table, chart, *([bench.json] if bench.json else [])):
        console.print(f"wrote {path}", style="dim", soft_wrap=True, highlight=False)
    return rows


def measured(
    bench: LatencyBench, model: str, tell: Callable[[str], None], start: Start = entered
) -> list[Row]:
    """The rows of a model.

    Args:
        bench: what to run.
        model: one of its models.
        tell: told in a few words what was done, once for each preparation and picture.
        start: opens a row's process.
    """
    own = models.call_settings(model) if model in models.NAMES else {}
    call = {**own, "num_inference_steps": bench.steps}
    name = model if model in models.NAMES else Path(model).resolve().name
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hybridiff-bench-")))
        entrants: list[Entrant] = []
        for i, variant in enumerate(bench.variants()):  # alone, so that each compiles alone
            job = Job(model, *variant, call, folder / str(i))
            entrants.append(stack.enter_context(start(job)))
            tell(f"{name}: {latency_table.label(*variant)}, ready")
        made = dict(in_turn(entrants, bench.runs, lambda text: tell(f"{name}: {text}")))
        return _rows(bench, name, entrants, [made[i] for i in range(len(entrants))])


def in_turn(
    entrants: Sequence[Entrant], runs: int, tell: Callable[[str], None]
) -> Iterator[tuple[int, list[Made]]]:
    """What each entrant made after a picture that warms up; each round starts with another one."""
    made: list[list[Made]] = [[] for _ in entrants]
    order = list(range(len(entrants)))
    for seed in range(-1, runs):
        first = max(0, seed) % len(order)
        for i in (*order[first:], *order[:first]):
            job = entrants[i].job
            picture = entrants[i].make(max(0, seed))
            if seed >= 0:
                made[i].append(picture)
            tell(latency_table.label(job.mode, job.backend, job.scope))
    yield from enumerate(made)


def _rows(
    bench: LatencyBench, name: str, entrants: Sequence[Entrant], made: Sequence[Sequence[Made]]
) -> list[Row]:
    of = {(e.job.mode, e.job.backend): m for e, m in zip(entrants, made, strict=True)}
    reference = of[summary.REFERENCE, "eager"]
    rows = []
    for entrant, pictures in zip(entrants, made, strict=True):
        job = entrant.job
        what: dict[str, Any] = {"command": "bench", "model": name, "scheduler": entrant.scheduler}
        what |= {"steps": bench.steps, "backend": job.backend, "scope": job.scope}
        what |= {"guidance_scale": job.call.get("guidance_scale")}
        what |= {"ranks": 2 if job.mode in RANKS else 1, **entrant.totals()}
        what["compile_seconds_cold"] = entrant.ready_seconds
        seconds = median(m.seconds for m in of["one-device", job.backend])
        rows.append(summary.row(job.mode, pictures, reference, one_device=seconds, **what))
    return rows
