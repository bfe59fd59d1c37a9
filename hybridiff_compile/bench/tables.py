"""Rows of figures as tables, for the terminal and for Markdown: one way for every command."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import get_args

from rich import box
from rich.console import Console
from rich.table import Table

from hybridiff_compile.bench.command import counted
from hybridiff_compile.bench.figures import Environment, PhaseName, Row

NOT_MEASURED = "-"
PHASES = "serial / pip.\n/ forecast"
#: A terminal that is narrower had better wrap the lines than cut the figures.
_WIDTH = 190
#: Head, unit, text of the cell.
Column = tuple[str, str, Callable[[Row], str]]


@dataclass(frozen=True)
class Layout:
    """How a command shows its rows: the columns of its tables, and what they mean."""

    columns: tuple[Column, ...]
    footnote: str


def header(where: Environment) -> str:
    """What it was measured on, in a line."""
    return (
        f"{where.cpu}, {where.cpu_count} cores, {where.threads_per_rank} thread a rank; "
        f"{where.os}, Python {where.python}, torch {where.torch}, diffusers {where.diffusers}"
    )


def tables(rows: Sequence[Row], layout: Layout, thinned: str = "") -> list[Table]:
    """One table for each model with its sampler and steps, in the order of the rows.

    Args:
        rows: in order.
        layout: of them.
        thinned: what was left out to be quick, if anything was.
    """
    found = []
    for _, group in groupby(rows, key=lambda row: (row.model, row.scheduler, row.steps)):
        of = list(group)
        table = empty(_title(of[0]), *(f"{head}\n{unit}" for head, unit, _ in layout.columns))
        said = "T(2B)/T(B) = {:.2f}: the most that exact can gain on this device."
        notes = (thinned, said.format(bound) if (bound := batching(of)) else "")
        table.caption = "\n".join(text for text in notes if text)
        table.show_edge = table.pad_edge = False
        for row in of:
            table.add_row(*(cell(row) for _, _, cell in layout.columns))
        found.append(table)
    return found


def empty(title: str, *heads: str) -> Table:
    """A table without rows, whose first column holds words and the others numbers."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.caption_justify = "left"
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", no_wrap=True)
    return table


def show(table: Table, console: Console) -> None:
    """Print a table with all of its figures, whatever the terminal's width."""
    before, console.width = console.width, max(console.width, _WIDTH)
    console.print()
    console.print(table)
    console.width = before


def markdown(table: Table) -> str:
    """A table with its title and caption, in Markdown."""
    columns = [[_one_line(str(c.header)), "---:", *map(str, c.cells)] for c in table.columns]
    columns[0][1] = "---"
    lines = [f"| {' | '.join(cells)} |" for cells in zip(*columns, strict=True)]
    return "\n\n".join(str(text) for text in (table.title, "\n".join(lines), table.caption) if text)


def line(row: Row, layout: Layout) -> str:
    """A row as it is known, in a line: what was measured of it, with its heads."""
    name, *columns = layout.columns
    cells = [(_one_line(f"{head} {unit}"), cell(row)) for head, unit, cell in columns]
    shown = [f"{head} {text}" for head, text in cells if set(text) - set("-/ ")]
    return f"{row.model}, {name[2](row)}: {', '.join(shown)}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def batching(rows: Iterable[Row]) -> float | None:
    """T(2B)/T(B) on one device: what exact could reach at best, all else being free.

    A step of `one-device` is one call of both branches, one of `one-device-apart` is two calls.
    None unless both are there with the backend of exact.
    """
    step = {(row.mode, row.backend): (row.step_ms_by_phase or {}).get("serial") for row in rows}
    backends = {backend for mode, backend in step if mode in ("one-device-apart", "exact")}
    if len(backends) != 1:  # a bound of others than these
        return None
    (backend,) = backends
    together, apart = (step.get((mode, backend)) for mode in ("one-device", "one-device-apart"))
    return 2 * together / apart if together and apart else None


def _title(row: Row) -> str:
    parts = [
        row.model,
        row.scheduler,
        f"{row.steps} steps" if row.steps else None,
        f"guidance {row.guidance_scale:g}" if row.guidance_scale is not None else None,
        f"{row.width} x {row.height}" if row.width and row.height else None,
        f"median of {counted(row.runs, 'picture')}" if row.runs else None,
    ]
    return ", ".join(part for part in parts if part)


def number(value: float | None, form: str, scale: float = 1) -> str:
    """A figure's text, or a dash."""
    return NOT_MEASURED if value is None else format(value * scale, form)


def ratio(value: float | None, of: float | None) -> str:
    """How many times the one is the other, or a dash."""
    return number(value / of, ".2f") if value is not None and of else NOT_MEASURED


def by_phase(values: Mapping[PhaseName, float] | None, form: str) -> str:
    """The figures of all phases, a dash for one that did not occur; or one dash."""
    if not values:
        return NOT_MEASURED
    return " / ".join(number(values.get(phase), form) for phase in get_args(PhaseName))


def by_rank(values: Sequence[float] | None) -> str:
    """The figures of all ranks, or a dash."""
    return " / ".join(f"{value:.0f}" for value in values) if values else NOT_MEASURED


def _right(row: Row) -> str:
    """How many pictures show what was asked for, or a dash."""
    if row.prompts_right is None or row.prompts is None:
        return NOT_MEASURED
    return f"{round(row.prompts_right * row.prompts)} of {row.prompts}"


def _error(row: Row) -> str:
    """The largest difference of the latents, or a dash."""
    return "0" if row.max_abs_error == 0 else number(row.max_abs_error, ".1e")


# Columns that several commands show.
MODE: Column = ("mode", "", lambda row: row.mode)
PICTURE: Column = ("picture", "s", lambda row: number(row.seconds, ".2f"))
SPEEDUP: Column = ("speed-up", "", lambda row: number(row.speedup, ".2f"))
STEP_MS: Column = ("step ms", PHASES, lambda row: by_phase(row.step_ms_by_phase, ".1f"))
STEPS: Column = ("steps", PHASES, lambda row: by_phase(row.steps_by_phase, "d"))
SENT: Column = ("sent", "MB", lambda row: number(row.bytes_sent, ".2f", 1e-6))
PEAK: Column = ("peak MB", "by rank", lambda row: by_rank(row.peak_rss_mb))
PSNR: Column = ("PSNR", "dB", lambda row: number(row.psnr_db, ".1f"))
ERROR: Column = ("max error", "", _error)
RIGHT: Column = ("right", "", _right)
