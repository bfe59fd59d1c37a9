"""`hybridiff bench`: every way of making a picture, in turn, in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from hybridiff_compile.bench import charts, command, estimate, figures, models, summary, tables
from hybridiff_compile.bench.command import check_least
from hybridiff_compile.bench.entrant import Entrant, Start, entered
from hybridiff_compile.bench.figures import Backend, Environment, Mode, Row, Scope, Variant
from hybridiff_compile.bench.measure import Made
from hybridiff_compile.bench.ready import Job
from hybridiff_compile.bench.tables import Layout, number
from hybridiff_compile.errors import ConfigError

RANKS: tuple[Mode, ...] = ("exact", "paper", "hybrid", "asyncdiff")
BACKENDS: tuple[Backend, ...] = ("eager", "inductor")
_ONE, _TWO = "#8d99ae", "#3b6fb6"  # bars of one device and of two ranks


def label(mode: Mode, backend: Backend | None) -> str:
    """A row's name in a few words: `one device, compiled`, `exact, eager`, `one device, apart`."""
    if mode == "one-device-apart":
        return "one device, apart"
    how = "eager" if backend == "eager" else "compiled"
    return f"{'one device' if mode == 'one-device' else mode}, {how}"


LAYOUT = Layout(
    columns=(
        ("row", "", lambda row: label(row.mode, row.backend)),
        tables.PICTURE,
        ("p90", "s", lambda row: number(row.seconds_p90, ".2f")),
        tables.SPEEDUP,
        tables.STEP_MS,
        tables.STEPS,
        ("compile", "s", lambda row: number(row.compile_seconds_cold, ".1f")),
        tables.SENT,
        tables.PEAK,
        tables.PSNR,
    ),
    footnote=(
        "Rows take turns, picture by picture, each in processes of its own. Speed-up: against one "
        "device with the same backend. Compile: seconds until it could make its first picture, "
        "with an empty cache; for two ranks that includes capturing the denoiser. Peak: resident "
        "memory of each rank. PSNR: against one device that runs the branches one after the other, "
        "100 at most. asyncdiff: both branches in one batch, pipelined by stages on stale features."
    ),
)


@dataclass(frozen=True)
class LatencyBench:
    """What to run.

    Attributes:
        models: names of embedded pipelines, or folders, in the order of the tables.
        backend: of the modes on two ranks; one device is measured in each.
        steps: denoising steps of a picture.
        runs: pictures of each row after one that warms up.
        out: folder for the table and the chart.
        json: file for the figures, written after every model; None writes none.
        thinned: what is left out to be quick, in words; nothing is compiled then.
    """

    models: tuple[str, ...] = models.NAMES
    backend: Backend = "inductor"
    steps: int = 50
    runs: int = 3
    out: Path = Path("bench")
    json: Path | None = None
    thinned: str = ""

    def __post_init__(self) -> None:
        """Raise ConfigError for a model that does not exist or a count that measures nothing."""
        folders = [name for name in self.models if Path(name).is_dir()]
        models.check_names([name for name in self.models if name not in folders])
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
        check_least("steps", self.steps, 3)
        check_least("runs", self.runs, 1)

    def variants(self) -> list[Variant]:
        """The rows of a model; compiled ranks compile the repeated blocks."""
        scope: Scope | None = None if self.backend == "eager" else "regional"
        one: list[Variant] = [("one-device", backend, None) for backend in BACKENDS]
        if self.thinned and self.backend == "eager":
            one = one[:1]
        apart: Variant = ("one-device-apart", "eager", None)
        return [*one, apart, *((mode, self.backend, scope) for mode in RANKS)]


def run(bench: LatencyBench, console: Console) -> list[Row]:
    """Measure every row of every model; print the tables, write them, the chart and the figures.

    Raises:
        HybridiffError: a row could not be measured; the figures of the models before are kept.
    """
    where, rows = figures.environment(threads_per_rank=1), list[Row]()
    variants, rounds = bench.variants(), 1 + bench.runs
    with command.output(bench.out, bench.json, console) as folder:
        each = [estimate.step_seconds(*models.opened(name)) for name in bench.models]
        seconds = sum(estimate.rows(step, variants, bench.steps * rounds) for step in each)
        what = (
            f"{command.counted(len(each), 'model')}, {len(variants)} rows, {rounds} pictures each"
        )
        command.announce(console, seconds, what)
        with command.Telling(console, len(variants) * (1 + rounds) * len(bench.models)) as tell:
            for model in bench.models:
                found = measured(bench, model, tell)
                tables.show(found, LAYOUT, console, bench.thinned)
                rows += found
                if bench.json is not None:
                    figures.write(bench.json, rows, where)
        tables.close(folder / "latency.md", rows, LAYOUT, where, console, bench.thinned)
        draw(folder / "latency.png", rows, where)
    return rows


def measured(
    bench: LatencyBench, model: str, tell: Callable[[str], None], start: Start = entered
) -> list[Row]:
    """The rows of a model.

    Args:
        bench: what to run.
        model: one of its models.
        tell: told in a few words what begins, once for each preparation and picture.
        start: opens a row's process.
    """
    known = model in models.NAMES
    call = {**(models.call_settings(model) if known else {}), "num_inference_steps": bench.steps}
    name = model if known else Path(model).resolve().name
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hybridiff-bench-")))
        entrants: list[Entrant] = []
        for i, variant in enumerate(bench.variants()):  # alone, so that each compiles alone
            tell(f"{name}: {label(*variant[:2])}, preparing")
            job = Job(model, *variant, call, folder / str(i))
            entrants.append(stack.enter_context(start(job)))
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
            turn = "warming up" if seed < 0 else f"picture {seed + 1} of {runs}"
            tell(f"{label(job.mode, job.backend)}, {turn}")
            picture = entrants[i].make(max(0, seed))
            if seed >= 0:
                made[i].append(picture)
    yield from enumerate(made)


def _rows(
    bench: LatencyBench, name: str, entrants: Sequence[Entrant], made: Sequence[Sequence[Made]]
) -> list[Row]:
    of = {(e.job.mode, e.job.backend): m for e, m in zip(entrants, made, strict=True)}
    reference = of[summary.REFERENCE, "eager"]
    rows = []
    for entrant, pictures in zip(entrants, made, strict=True):
        job, taken = entrant.job, asdict(entrant.totals())
        kept = ("peak_rss_mb", "peak_pss_mb", *(("recompiles",) if job.backend != "eager" else ()))
        what: dict[str, Any] = {"command": "bench", "model": name, "scheduler": entrant.scheduler}
        what |= {"steps": bench.steps, "backend": job.backend, "scope": job.scope}
        what |= {"guidance_scale": job.call.get("guidance_scale")}
        what |= {"ranks": 2 if job.mode in RANKS else 1} | {key: taken[key] for key in kept}
        what["compile_seconds_cold"] = entrant.ready_seconds
        seconds = median(m.seconds for m in of["one-device", job.backend])
        rows.append(summary.row(job.mode, pictures, reference, one_device=seconds, **what))
    return rows


def draw(path: Path, rows: Sequence[Row], where: Environment) -> None:
    """Write one PNG: for each model, a bar for each row, and a line up to its 90th percentile."""
    panels = []
    for name, group in groupby(rows, key=lambda row: row.model):
        of = list(group)
        bars = [
            [charts.Bar(r.seconds or 0.0, _TWO if r.ranks == 2 else _ONE, note(r), r.seconds_p90)]
            for r in of
        ]
        words = "seconds of a picture (median; line: 90th percentile)"
        side = charts.Side(words, bars)
        labels = [label(r.mode, r.backend) for r in of]
        panels.append(charts.Panel(f"{name}, {of[0].steps} steps", labels, [side]))
    charts.bars(path, panels, note=tables.header(where))


def note(row: Row) -> str:
    """The words at the end of a bar: seconds, speed-up, dB."""
    words = [f"{row.seconds:.2f} s"]
    words += [] if row.speedup is None else [f"{row.speedup:.2f} x"]
    words += [] if row.psnr_db is None else [f"{row.psnr_db:.0f} dB"]
    return ",  ".join(words)
