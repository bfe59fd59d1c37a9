"""`hybridiff bench --compare`: two files of figures, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hybridiff_compile.bench import figures, tables
from hybridiff_compile.bench.figures import Row
from hybridiff_compile.bench.tables import NOT_MEASURED, number, ratio
from hybridiff_compile.errors import ConfigError

#: Keys that two rows must share to be of the same thing.
SAME = (
    *("model", "mode", "backend", "scope", "scheduler", "steps", "guidance_scale"),
    *("height", "width", "batch", "dtype", "k", "m", "tolerance", "estimator", "device", "link"),
)
#: Keys that are compared: head, form, scale.
COMPARED = {
    "seconds": ("picture s", ".2f", 1),
    "predicted_seconds": ("predicted s", ".2f", 1),
    "speedup": ("speed-up", ".2f", 1),
    "compile_seconds_cold": ("compile s", ".1f", 1),
    "bytes_sent": ("sent MB", ".2f", 1e-6),
    "psnr_db": ("PSNR dB", ".1f", 1),
}
Pair = tuple[Row, Row]


def matched(first: Sequence[Row], second: Sequence[Row]) -> tuple[list[Pair], list[Row], list[Row]]:
    """Rows of the same thing, in the order of the first, and those that only one of both has.

    Of several alike, the first is matched with the first.
    """
    pairs, only_first, left = list[Pair](), list[Row](), list(second)
    for row in first:
        other = next((of for of in left if _what(of) == _what(row)), None)
        if other is None:
            only_first.append(row)
        else:
            left.remove(other)
            pairs.append((row, other))
    return pairs, only_first, left


def _what(row: Row) -> list[object]:
    return [getattr(row, key) for key in SAME]


def run(first: Path, second: Path, console: Console) -> None:
    """Read two files, and print how they differ.

    Raises:
        ConfigError: one cannot be read, or they have no row in common.
    """
    a, b = figures.read(first), figures.read(second)
    pairs, *left = matched(a.rows, b.rows)
    if not pairs:
        raise ConfigError(
            f"{first} and {second} have no row in common: a row is the same if its "
            f"{', '.join(SAME[:6])} and so on are; compare two runs of one command."
        )
    for (key, one), (_, other) in zip(a.environment, b.environment, strict=True):
        if one != other:
            console.print(f"{key}: {one} | {other}", highlight=False, soft_wrap=True)
    tables.show(table(pairs, f"{first} | {second}"), console)
    for name, rows in zip((first, second), left, strict=True):
        if rows:
            words = "; ".join(_label(row) for row in rows)
            console.print(f"only in {name}: {words}", style="dim", soft_wrap=True, highlight=False)


def table(pairs: Sequence[Pair], title: str) -> Table:
    """Both values of what was measured in any row, and how many times the first the second is."""
    keys = [key for key in COMPARED if any(getattr(r, key) is not None for p in pairs for r in p)]
    heads = (COMPARED[key][0] + ("" if key == "psnr_db" else "\n(ratio)") for key in keys)
    made = tables.empty(title, "row", *heads)
    made.caption = "ratio: how many times the first file's value the second one's is"
    for a, b in pairs:
        made.add_row(_label(a), *(_cell(getattr(a, key), getattr(b, key), key) for key in keys))
    return made


def _cell(a: float | None, b: float | None, key: str) -> str:
    _, form, scale = COMPARED[key]
    if a is None and b is None:
        return NOT_MEASURED
    times = ratio(b, a) if key != "psnr_db" else NOT_MEASURED
    shown = f" ({times})" if times != NOT_MEASURED else ""
    return f"{number(a, form, scale)} | {number(b, form, scale)}{shown}"


def _label(row: Row) -> str:
    named = {"k": row.k, "m": row.m, "tolerance": row.tolerance}
    parts = [row.model, row.mode, row.backend, row.scope]
    parts += [f"{name}={value:g}" for name, value in named.items() if value is not None]
    return ", ".join(part for part in parts if part is not None)
