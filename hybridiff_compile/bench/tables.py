"""Rows of figures as a table, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import get_args

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from hybridiff_compile.bench.figures import PhaseName, Row

NOT_MEASURED = "-"
PHASES = "serial / pip.\n/ forecast"
#: Head, unit, text of the cell.
Column = tuple[str, str, Callable[[Row], str]]

#: A terminal that is narrower had better wrap the lines than cut the figures.
WIDTH = 110


def terminal_tables(rows: Sequence[Row], columns: Sequence[Column] | None = None) -> list[Table]:
    """One table for each model, in the order of the rows; the columns of `DEMO` unless given."""
    groups = groupby(rows, key=lambda row: row.model)
    return [_terminal_table(list(group), columns or DEMO) for _, group in groups]


def markdown(rows: Sequence[Row], columns: Sequence[Column] | None = None) -> str:
    """All rows as one Markdown table, the model in the first column."""
    columns = columns or DEMO
    heads = ["model", *(" ".join(f"{head} {unit}".split()) for head, unit, _ in columns)]
    lines = [heads, ["---", *("---" if c[0] in _WORDS else "---:" for c in columns)]]
    lines += [[row.model, *(cell(row) for _, _, cell in columns)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def batching(rows: Iterable[Row]) -> float | None:
    """T(2B)/T(B) on one device: what exact could reach at best, all else being free.

    A step of `one-device` is one call of both branches, one of `one-device-apart` is two calls.
    """
    rows = list(rows)
    backend = next((row.backend for row in rows if row.mode == "one-device-apart"), None)
    if any(row.backend != backend for row in rows if row.mode == "exact"):
        return None  # a bound of others than these
    step = {
        row.mode: (row.step_ms_by_phase or {}).get("serial")
        for row in rows
        if row.backend == backend
    }
    together, apart = step.get("one-device"), step.get("one-device-apart")
    return 2 * together / apart if together and apart else None


def _terminal_table(rows: Sequence[Row], columns: Sequence[Column]) -> Table:
    table = Table(
        title=_title(rows[0]),
        caption=_caption(rows),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        show_edge=False,
        pad_edge=False,
    )
    for head, unit, _ in columns:
        justify = "left" if head in _WORDS else "right"
        table.add_column(f"{head}\n{unit}", justify=justify, no_wrap=True)
    for row in rows:
        table.add_row(*(cell(row) for _, _, cell in columns))
    return table


def _title(row: Row) -> str:
    parts = [
        row.model,
        row.scheduler,
        f"{row.steps} steps" if row.steps else None,
        f"guidance {row.guidance_scale:g}" if row.guidance_scale is not None else None,
        f"{row.width} x {row.height}" if row.width and row.height else None,
        f"median of {row.runs} pictures" if row.runs else None,
    ]
    return ", ".join(part for part in parts if part)


def _caption(rows: Sequence[Row]) -> str | None:
    bound = batching(rows)
    if bound is None:
        return None
    return f"T(2B)/T(B) = {bound:.2f}: the most that exact can gain on this device."


def progress(console: Console) -> Progress:
    """How far a measurement is, on a terminal."""
    return Progress(
        TextColumn("{task.description:28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def number(value: float | None, form: str, scale: float = 1) -> str:
    """A figure's text, or a dash."""
    return NOT_MEASURED if value is None else format(value * scale, form)


def by_phase(values: Mapping[PhaseName, float] | None, form: str) -> str:
    """The figures of all phases, a dash for one that did not occur; or one dash."""
    if not values:
        return NOT_MEASURED
    return " / ".join(number(values.get(phase), form) for phase in get_args(PhaseName))


def by_rank(values: Sequence[float] | None) -> str:
    """The figures of all ranks, or a dash."""
    return " / ".join(f"{value:.0f}" for value in values) if values else NOT_MEASURED


def right(row: Row) -> str:
    """How many pictures show what was asked for, or a dash."""
    if row.prompts_right is None or row.prompts is None:
        return NOT_MEASURED
    return f"{round(row.prompts_right * row.prompts)} of {row.prompts}"


def error(row: Row) -> str:
    """The largest difference of the latents, or a dash."""
    return "0" if row.max_abs_error == 0 else number(row.max_abs_error, ".1e")


_WORDS = ("mode", "row")  # left-justified
DEMO: tuple[Column, ...] = (
    ("mode", "", lambda row: row.mode),
    ("picture", "s", lambda row: number(row.seconds, ".2f")),
    ("speed-up", "", lambda row: number(row.speedup, ".2f")),
    ("step ms", PHASES, lambda row: by_phase(row.step_ms_by_phase, ".1f")),
    ("steps", PHASES, lambda row: by_phase(row.steps_by_phase, "d")),
    ("PSNR", "dB", lambda row: number(row.psnr_db, ".1f")),
    ("max error", "", error),
    ("sent", "MB", lambda row: number(row.bytes_sent, ".2f", 1e-6)),
    ("right", "", right),
)
