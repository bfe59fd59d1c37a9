"""The latency benchmark's table, with what it was measured on above it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from hybridiff_compile.bench import tables
from hybridiff_compile.bench.figures import Backend, Environment, Mode, Row, Scope
from hybridiff_compile.bench.tables import PHASES, Column, by_phase, by_rank, number

#: A terminal that is narrower had better wrap the lines than cut the figures.
WIDTH = 132
FOOTNOTE = (
    "Rows take turns, picture by picture, each in processes of its own. Speed-up: against one "
    "device with the same backend. Compile: seconds until it could make its first picture, with an "
    "empty cache; for two ranks that includes capturing the denoiser. Peak: resident memory of "
    "each rank. PSNR: against one device that runs the branches one after the other, 100 at most. "
    "asyncdiff: both branches in one batch, pipelined by stages on stale features."
)


def label(mode: Mode, backend: Backend | None, scope: Scope | None) -> str:
    """A row's name in a few words: `one device, compiled`, `exact`, `hybrid, eager`."""
    if mode == "one-device-apart":
        return "one device, apart"
    how = "eager" if backend == "eager" else "compiled"
    return f"{'one device' if mode == 'one-device' else mode}, {how}"


COLUMNS: tuple[Column, ...] = (
    ("row", "", lambda row: label(row.mode, row.backend, row.scope)),
    ("picture", "s", lambda row: number(row.seconds, ".2f")),
    ("p90", "s", lambda row: number(row.seconds_p90, ".2f")),
    ("speed-up", "", lambda row: number(row.speedup, ".2f")),
    ("step ms", PHASES, lambda row: by_phase(row.step_ms_by_phase, ".1f")),
    ("steps", PHASES, lambda row: by_phase(row.steps_by_phase, "d")),
    ("compile", "s", lambda row: number(row.compile_seconds_cold, ".1f")),
    ("sent", "MB", lambda row: number(row.bytes_sent, ".2f", 1e-6)),
    ("peak MB", "by rank", lambda row: by_rank(row.peak_rss_mb)),
    ("PSNR", "dB", lambda row: number(row.psnr_db, ".1f")),
)


def header(where: Environment) -> str:
    """What it was measured on, in a line."""
    return (
        f"{where.cpu}, {where.cpu_count} cores, {where.threads_per_rank} thread a rank; "
        f"{where.os}, Python {where.python}, torch {where.torch}, diffusers {where.diffusers}"
    )


def show(rows: Sequence[Row], where: Environment, console: Console) -> None:
    """Print a table for each model."""
    before, console.width = console.width, max(console.width, WIDTH)
    console.print(f"\n{header(where)}", style="dim", highlight=False)
    for table in tables.terminal_tables(rows, COLUMNS):
        console.print()
        console.print(table)
    console.width = before
    console.print(f"\n{FOOTNOTE}", style="dim", highlight=False)


def markdown(rows: Sequence[Row], where: Environment) -> str:
    """All rows as a document."""
    return f"{header(where)}\n\n{tables.markdown(rows, COLUMNS)}\n\n{FOOTNOTE}\n"
