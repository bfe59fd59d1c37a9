"""`hybridiff bench --compare`: two files of figures, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hybridiff_compile.bench import figures, tables
from hybridiff_compile.bench.figures import Environment, Figures, Row
from hybridiff_compile.bench.tables import NOT_MEASURED, number
from hybridiff_compile.errors import ConfigError

#: A terminal that is narrower had better wrap the lines than cut the figures.
WIDTH = 190
#: Keys that two rows must share to be of the same thing.
SAME = (
    *("model", "mode", "backend", "scope", "scheduler", "steps", "guidance_scale"),
    *("height", "width", "batch", "dtype", "k", "m", "tolerance", "estimator", "device", "link"),
)
#: Keys that are compared: head, form, scale.
COMPARED: Mapping[str, tuple[str, str, float]] = {
    "seconds": ("picture s", ".2f", 1),
    "predicted_seconds": ("predicted s", ".2f", 1),
    "speedup": ("speed-up", ".2f", 1),
    "compile_seconds_cold": ("compile s", ".1f", 1),
    "bytes_sent": ("sent MB", ".2f", 1e-6),
    "psnr_db": ("PSNR dB", ".1f", 1),
}


@dataclass(frozen=True)
class Compared:
    """Two files.

    Attributes:
        both: rows of the same thing, in the order of the first file.
        first, second: rows that only one file has.
        environment: what differs, by key.
    """

    both: tuple[tuple[Row, Row], ...]
    first: tuple[Row, ...]
    second: tuple[Row, ...]
    environment: Mapping[str, tuple[object, object]]


def compare(a: Figures, b: Figures) -> Compared:
    """Match the rows of two files; of several alike, the first with the first."""
    left: dict[tuple[object, ...], list[Row]] = {}
    for row in b.rows:
        left.setdefault(_identity(row), []).append(row)
    both, first = [], []
    for row in a.rows:
        alike = left.get(_identity(row))
        if alike:
            both.append((row, alike.pop(0)))
        else:
            first.append(row)
    second = tuple(row for rows in left.values() for row in rows)
    return Compared(tuple(both), tuple(first), second, _differences(a.environment, b.environment))


def run(first: Path, second: Path, console: Console) -> Compared:
    """Read two files, and print how they differ.

    Raises:
        ConfigError: one cannot be read, or they have no row in common.
    """
    found = compare(figures.read(first), figures.read(second))
    if not found.both:
        raise ConfigError(
            f"{first} and {second} have no row in common: a row is the same if its "
            f"{', '.join(SAME[:6])} and so on are; compare two runs of one command."
        )
    for key, (a, b) in found.environment.items():
        console.print(f"{key}: {a} | {b}", highlight=False, soft_wrap=True)
    before, console.width = console.width, max(console.width, WIDTH)
    console.print(table(found, first, second))
    console.width = before
    for name, rows in ((first, found.first), (second, found.second)):
        if rows:
            words = "; ".join(_label(row) for row in rows)
            console.print(f"only in {name}: {words}", style="dim", soft_wrap=True, highlight=False)
    return found


def table(found: Compared, first: Path, second: Path) -> Table:
    """Both values of what was measured in any row, and how many times the first the second is."""
    keys = [
        key for key in COMPARED if any(getattr(r, key) is not None for p in found.both for r in p)
    ]
    made = tables.empty(
        f"{first} | {second}", "row", *(f"{COMPARED[key][0]}\n(ratio)" for key in keys)
    )
    for a, b in found.both:
        made.add_row(_label(a), *(_pair(getattr(a, key), getattr(b, key), key) for key in keys))
    return made


def _pair(a: float | None, b: float | None, key: str) -> str:
    _, form, scale = COMPARED[key]
    if a is None and b is None:
        return NOT_MEASURED
    ratio = f" ({b / a:.2f})" if a and b is not None and key != "psnr_db" else ""
    return f"{number(a, form, scale)} | {number(b, form, scale)}{ratio}"


def _identity(row: Row) -> tuple[object, ...]:
    return tuple(getattr(row, key) for key in SAME)


def _label(row: Row) -> str:
    named = {"k": row.k, "m": row.m, "tolerance": row.tolerance}
    parts = [row.model, row.mode, row.backend, row.scope]
    parts += [f"{name}={value:g}" for name, value in named.items() if value is not None]
    return ", ".join(part for part in parts if part is not None)


def _differences(a: Environment, b: Environment) -> dict[str, tuple[object, object]]:
    pairs = {key: (value, getattr(b, key)) for key, value in a}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
