"""`hybridiff bench --compile`: what compiling costs and gains, as a table and a bar chart."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console

from hybridiff_compile.bench import charts, command, estimate, figures, models, summary, tables
from hybridiff_compile.bench.charts import PHASE_COLOURS, Bar
from hybridiff_compile.bench.command import check_least
from hybridiff_compile.bench.entrant import Start, entered
from hybridiff_compile.bench.figures import Backend, Mode, Row, Scope, Variant
from hybridiff_compile.bench.ready import Job
from hybridiff_compile.bench.tables import NOT_MEASURED, Layout, by_rank, number
from hybridiff_compile.ir import Phase

#: The rows of a model: the first of a backend is what the others of it are compared with.
VARIANTS: tuple[Variant, ...] = (
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
#: Those of a quick run: what users meet.
QUICK: tuple[Variant, ...] = (VARIANTS[0], VARIANTS[1], VARIANTS[3])
FOOTNOTE = (
    "Each row is measured in processes of its own, one after the other, with one thread a rank. "
    "Cold, warm: seconds until all ranks are ready, with an empty cache folder and with the one "
    "that the cold process filled. For two ranks that includes capturing the denoiser; for one "
    "device it is the first denoiser call less a later one. Load: the same for an exported "
    "package, its worker's start included, which cold and warm leave out. / one dev.: against the "
    "cold torch.compile of one device. First picture: from a loaded pipeline to the picture, with "
    "an empty cache. Step: the denoiser call, on the driver's clock. Peak: resident memory of the "
    "ranks' processes, compiling included; of a C++ compiler that they start it is not. Graphs: "
    "the compiled ones that each rank has, its own and those that the other compiled for it."
)
#: Bars of the chart's left side by key of the figures, with their words and colours.
READY: Mapping[str, tuple[str, str]] = {
    "compile_seconds_cold": ("compile, empty cache", "#5b4b9a"),
    "compile_seconds_warm": ("compile, warm cache", "#b3a6dd"),
    "load_seconds": ("load a package", "#2a9d74"),
}
#: Bars of its right side by phase of the figures.
STEP: Mapping[str, tuple[str, str]] = {
    "serial": ("serial step", PHASE_COLOURS[Phase.SERIAL]),
    "pipelined": ("pipelined step", PHASE_COLOURS[Phase.PIPELINED]),
}


def label(mode: Mode, backend: Backend | None, scope: Scope | None) -> str:
    """A row's name in a few words: `one device, inductor`, `exact, stage`, `paper, package`."""
    if mode == "one-device":
        return f"one device, {backend}"
    return f"{mode}, {'package' if backend == 'aot' else scope or backend}"


def layout(rows: Sequence[Row]) -> Layout:
    """How rows are shown that are compared with torch.compile on one device among them."""
    cold = {
        row.model: row.compile_seconds_cold
        for row in rows
        if (row.mode, row.backend) == ("one-device", "inductor")
    }

    def against_one_device(seconds: float | None, row: Row) -> str:
        return _ratio(seconds, cold.get(row.model))

    columns: tuple[tables.Column, ...] = (
        ("row", "", lambda row: label(row.mode, row.backend, row.scope)),
        ("cold", "s", lambda row: number(row.compile_seconds_cold, ".1f")),
        ("cold /", "one dev.", lambda row: against_one_device(row.compile_seconds_cold, row)),
        ("warm", "s", lambda row: number(row.compile_seconds_warm, ".1f")),
        ("warm /", "cold", lambda row: _ratio(row.compile_seconds_warm, row.compile_seconds_cold)),
        ("load", "s", lambda row: number(row.load_seconds, ".2f")),
        ("load /", "one dev.", lambda row: against_one_device(row.load_seconds, row)),
        ("first", "picture s", lambda row: number(row.first_picture_seconds, ".1f")),
        tables.STEP_MS,
        tables.PEAK,
        ("graphs", "by rank", lambda row: by_rank(row.graphs)),
        ("recompiles", "", lambda row: number(row.recompiles, "d")),
    )
    return Layout(columns, FOOTNOTE)


def _ratio(value: float | None, of: float | None) -> str:
    return number(value / of, ".2f") if value is not None and of else NOT_MEASURED


@dataclass(frozen=True)
class CompileBench:
    """What to run.

    Attributes:
        names: models, in the order of the tables.
        steps: denoising steps of a picture; a third of them is pipelined in the paper's mode.
        runs: pictures of each row after its first one.
        out: folder for the table and the chart.
        json: file for the figures, written after every row; None writes none.
        variants: the rows.
        thinned: what is left out to be quick, in words.
    """

    names: tuple[str, ...] = models.NAMES
    steps: int = 12
    runs: int = 3
    out: Path = Path("bench")
    json: Path | None = None
    variants: tuple[Variant, ...] = VARIANTS
    thinned: str = ""

    def __post_init__(self) -> None:
        """Raise ConfigError for a model that does not exist or a count that measures nothing."""
        models.check_names(self.names)
        # Two steps of every third, so that one of them is not the step in which phases swap.
        check_least("steps", self.steps, 6)
        check_least("runs", self.runs, 1)


def schedule(mode: Mode, steps: int) -> dict[str, int]:
    """The paper's mode in thirds, serial, pipelined, serial: both phases, swapped twice."""
    return {"tau1": steps // 3, "k": steps // 3} if mode == "paper" else {}


def run(bench: CompileBench, console: Console) -> list[Row]:
    """Measure every row of every model; print the tables, write them, the chart and the figures.

    Raises:
        HybridiffError: a row could not be measured; the figures of those before it are kept.
    """
    where, rows = figures.environment(threads_per_rank=1), list[Row]()
    count = len(bench.names) * sum(len(_tasks(backend)) for _, backend, _ in bench.variants)
    with command.output(bench.out, bench.json, console) as folder:
        each = [estimate.step_seconds(*models.opened(name)) for name in bench.names]
        seconds = sum(estimate.compiling(step, bench.variants) for step in each)
        count_of_rows = command.counted(len(bench.variants), "row")
        what = f"{command.counted(len(each), 'model')}, {count_of_rows}, each compiled anew"
        command.announce(console, seconds, what)
        with command.Telling(console, count) as tell:
            for row in measured(bench, tell):
                rows.append(row)
                tell.row(tables.line(row, layout(rows)))
                if bench.json is not None:
                    figures.write(bench.json, rows, where)
        shown = layout(rows)
        tables.show(rows, shown, console, bench.thinned)
        tables.close(folder / "compile.md", rows, shown, where, console, bench.thinned)
        draw(folder / "compile.png", rows)
    return rows


def _tasks(backend: Backend) -> tuple[str, ...]:
    """What each row's processes are started for."""
    return {"eager": ("steps",), "aot": ("export", "load")}.get(backend, ("cold", "warm"))


def measured(
    bench: CompileBench, tell: Callable[[str], None], start: Start = entered
) -> Iterator[Row]:
    """Every row, one process at a time, in the order of the models and of the variants.

    Args:
        bench: what to run.
        tell: told in a few words what of a row begins.
        start: opens a row's process.
    """
    for name in bench.names:
        one_device: dict[Backend, float] = {}
        call = {**models.call_settings(name), "num_inference_steps": bench.steps}
        for variant in bench.variants:
            with tempfile.TemporaryDirectory(prefix="hybridiff-bench-") as folder:
                switching = schedule(variant[0], bench.steps)
                job = Job(name, *variant, call, Path(folder) / "cache", switching)
                row = _row(job, bench.runs, tell, start)
            if row.mode == "one-device" and row.seconds is not None:
                one_device[variant[1]] = row.seconds
            if variant[1] in one_device and row.seconds:
                row = row.model_copy(update={"speedup": one_device[variant[1]] / row.seconds})
            yield row


def _row(job: Job, runs: int, tell: Callable[[str], None], start: Start) -> Row:
    """One row; its caches and its package lie beside each other, in a folder that is empty."""

    def begin(task: str) -> None:
        tell(f"{job.model}: {label(job.mode, job.backend, job.scope)}, {task}")

    first, *second = _tasks(job.backend)
    begin(first)
    if job.backend == "aot":
        job = replace(job, package=job.cache.with_name("package"))
        with start(replace(job, exports=True)):
            pass
        begin(*second)
        # Another cache, an empty one: loading must not need what exporting compiled.
        job = replace(job, cache=job.cache.with_name("cache-of-load"))
    with start(job) as entrant:
        made = [entrant.make(seed) for seed in range(1 + runs)]
        taken, ready = entrant.totals(), entrant.ready_seconds
    what: dict[str, Any] = {
        "command": "bench",
        "model": job.model,
        "backend": job.backend,
        "scope": job.scope,
        "scheduler": entrant.scheduler,
        "steps": job.call["num_inference_steps"],
        "guidance_scale": job.call["guidance_scale"],
        "first_picture_seconds": taken.first_picture_seconds,
        "peak_rss_mb": taken.peak_rss_mb,
        "peak_pss_mb": taken.peak_pss_mb,
        "step_ms_by_phase": summary.driver_ms_by_phase(made)
        if taken.denoiser_ms is None
        else {"serial": taken.denoiser_ms},
    }
    if job.backend != "eager":
        what |= {"graphs": taken.graphs, "recompiles": taken.recompiles}
    if job.backend == "aot":
        what["load_seconds"] = ready
    elif job.backend == "inductor":
        begin(*second)
        with start(job) as again:
            what["compile_seconds_warm"] = again.ready_seconds
        what["compile_seconds_cold"] = ready
    return summary.row(job.mode, made[1:], **what)


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Write one PNG: for each model, a line of bars for each row.

    Seconds have one log axis for all models, steps a linear axis from zero for each.
    """
    panels = []
    for name, group in groupby(rows, key=lambda row: row.model):
        of = list(group)
        words = "seconds until all ranks are ready (log axis)"
        left = charts.Side(words, [_bars(_ready(row), READY) for row in of], is_log=True)
        steps = [_bars(row.step_ms_by_phase or {}, STEP) for row in of]
        right = charts.Side("a steady step, ms (median)", steps)
        labels = [label(r.mode, r.backend, r.scope) for r in of]
        panels.append(charts.Panel(name, labels, [left, right]))
    charts.bars(path, panels, dict((*READY.values(), *STEP.values())))


def _ready(row: Row) -> dict[str, float | None]:
    return {key: getattr(row, key) for key in READY}


def _bars(
    values: Mapping[Any, float | None], kinds: Mapping[str, tuple[str, str]]
) -> list[charts.Bar]:
    """A bar for each of what was measured, in the order of the kinds."""
    found = [(values.get(key), colour) for key, (_, colour) in kinds.items()]
    return [Bar(v, c, f"{v:.1f}" if v >= 1 else f"{v:.2f}") for v, c in found if v]
