"""`hybridiff bench --compile`: what compiling costs and gains, as a table and a bar chart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hybridiff_compile.bench import asked, compile_chart, compile_table, figures, models, tables
from hybridiff_compile.bench.compile_row import Job
from hybridiff_compile.bench.figures import Backend, Mode, Row, Scope
from hybridiff_compile.errors import HybridiffError

#: The rows of a model: the first is what the others of its backend are compared with.
VARIANTS: tuple[tuple[Mode, Backend, Scope | None], ...] = (
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
_LAST_LINES = 20

#: Runs a task ("measure" or "export") in a process of its own, with a cache folder.
Start = Callable[[str, Job, Path], dict[str, Any]]


@dataclass(frozen=True)
class CompileBench:
    """What to run.

    Attributes:
        names: models, in the order of the tables.
        steps: denoising steps of a picture; a third of them is pipelined in the paper's mode.
        runs: pictures of each row after its first one.
        out: folder for the table and the chart.
        json: file for the figures, written after every row; None writes none.
    """

    names: tuple[str, ...] = models.NAMES
    steps: int = 12
    runs: int = 3
    out: Path = Path("bench")
    json: Path | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for a model that does not exist or a count that measures nothing."""
        asked.check_names(self.names)
        # Two steps of every third, so that one of them is not the step in which phases swap.
        asked.check_least("steps", self.steps, 6)
        asked.check_least("runs", self.runs, 1)


def run(bench: CompileBench, console: Console) -> list[Row]:
    """Measure every row of every model; print the tables, write them, the chart and the figures.

    Raises:
        HybridiffError: a row could not be measured; the figures of those before it are kept.
    """
    asked.make_folders(bench.out, bench.json)
    where = figures.environment(threads_per_rank=1)
    rows: list[Row] = []
    with _progress(console) as progress:
        for row in measured(bench, _tell(bench, progress)):
            rows.append(row)
            if bench.json is not None:
                figures.write(bench.json, rows, where)
    columns = compile_table.columns(rows)
    _print(rows, columns, console)
    table, chart = bench.out / "compile.md", bench.out / "compile.png"
    table.write_text(tables.markdown(rows, columns) + "\n", encoding="utf-8")
    compile_chart.draw(chart, rows)
    for path in (table, chart, *([bench.json] if bench.json else [])):
        console.print(f"wrote {path}", style="dim", soft_wrap=True, highlight=False)
    return rows


def measured(
    bench: CompileBench, tell: Callable[[Job, str], None], start: Start | None = None
) -> Iterator[Row]:
    """Every row, one process at a time, in the order of the models and of `VARIANTS`.

    Args:
        bench: what to run.
        tell: told a row, and what of it begins: "cold", "warm", "export", "load" or "done".
        start: runs a task; by default in a process of its own.
    """
    start = start or in_process_of_its_own
    for name in bench.names:
        one_device: dict[Backend, float] = {}
        for mode, backend, scope in VARIANTS:
            job = Job(name, mode, backend, scope, bench.steps, bench.runs)
            with tempfile.TemporaryDirectory(prefix="hybridiff-bench-") as folder:
                found = _figures(job, Path(folder), tell, start)
            tell(job, "done")
            if mode == "one-device":
                one_device[backend] = found["seconds"]
            if backend in one_device:
                found["speedup"] = one_device[backend] / found["seconds"]
            what = {"model": name, "mode": mode, "backend": backend, "scope": scope}
            yield Row(command="bench", **what, **found)


def _figures(
    job: Job, folder: Path, tell: Callable[[Job, str], None], start: Start
) -> dict[str, Any]:
    """The figures of one row; its caches and its package lie in the folder, which is empty."""
    cache = folder / "cache"
    if job.backend == "aot":
        job = replace(job, package=str(folder / "package"))
        tell(job, "export")
        start("export", job, cache)
        tell(job, "load")
        # Another cache, an empty one: loading must not need what exporting compiled.
        found = start("measure", job, folder / "cache-of-load")
        return found | {"load_seconds": found.pop("ready_seconds")}
    tell(job, "cold")
    found = start("measure", job, cache)
    if job.backend == "eager":
        return found
    tell(job, "warm")
    warm = start("measure", replace(job, runs=0), cache)
    return found | {
        "compile_seconds_cold": found.pop("ready_seconds"),
        "compile_seconds_warm": warm["ready_seconds"],
    }


def in_process_of_its_own(task: str, job: Job, cache: Path) -> dict[str, Any]:
    """Run a task of `compile_row` in a new process, with a folder for Inductor's caches.

    Raises:
        HybridiffError: it failed.
    """
    # -P: a module of the user's in the working directory must not stand in for a library's.
    command = [sys.executable, "-P", "-m", "hybridiff_compile.bench.compile_row"]
    done = subprocess.run(
        [*command, task, job.to_json()],
        capture_output=True,
        text=True,
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)},
    )
    if done.returncode != 0:
        said = "\n".join(f"    {line}" for line in done.stderr.splitlines()[-_LAST_LINES:])
        raise HybridiffError(
            f"{job.model}, {compile_table.label(job.mode, job.backend, job.scope)}: the process "
            f"that was to {task} it ended with exit code {done.returncode}; see to what it said "
            f"last, and run the benchmark again:\n{said}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def _tell(bench: CompileBench, progress: Progress) -> Callable[[Job, str], None]:
    task = progress.add_task("starting", total=len(bench.names) * len(VARIANTS))

    def tell(job: Job, what: str) -> None:
        label = compile_table.label(job.mode, job.backend, job.scope)
        description = f"{job.model}: {label}, {what}"
        progress.update(task, advance=1 if what == "done" else 0, description=description)

    return tell


def _print(rows: list[Row], columns: tuple[tables.Column, ...], console: Console) -> None:
    width = console.width
    console.width = max(width, compile_table.WIDTH)
    for table in tables.terminal_tables(rows, columns):
        console.print()
        console.print(table)
    console.width = width
    console.print(f"\n{compile_table.FOOTNOTE}", style="dim", highlight=False)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:44}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
