"""The latency benchmark as bars: seconds of a picture, with speed-up and dB at their ends."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hybridiff_compile.bench.figures import Environment, Row
from hybridiff_compile.bench.latency_table import header, label
from hybridiff_compile.bench.style import GRID, INK, PAPER, QUIET, save

_ONE, _TWO = "#8d99ae", "#3b6fb6"
_ROW, _MARGIN, _HEAD, _FOOT = 0.34, 0.5, 0.45, 0.35  # inches
_WIDTH, _LABELS, _RIGHT = 9.0, 1.9, 0.4  # inches


def draw(path: Path, rows: Sequence[Row], where: Environment) -> None:
    """Write one PNG: for each model, a bar for each row, and a line up to its 90th percentile."""
    models = [(name, list(group)) for name, group in groupby(rows, key=lambda row: row.model)]
    heights = [_HEAD + _ROW * len(of) + _MARGIN for _, of in models]
    height = sum(heights) + _FOOT
    figure = Figure(figsize=(_WIDTH, height), facecolor=PAPER)
    top = 0.0
    for (name, of), taken in zip(models, heights, strict=True):
        bottom = 1 - (top + taken - _MARGIN) / height
        width = (_WIDTH - _LABELS - _RIGHT) / _WIDTH
        axes = figure.add_axes((_LABELS / _WIDTH, bottom, width, _ROW * len(of) / height))
        axes.set_title(
            f"{name}, {of[0].steps} steps", loc="left", size=12, weight="bold", color=INK
        )
        _bars(axes, of)
        top += taken
    figure.text(0.02, 0.1 / height, header(where), size=7, color=QUIET)
    save(figure, path)


def note(row: Row) -> str:
    """The words at the end of a bar: seconds, speed-up, dB."""
    words = [f"{row.seconds:.2f} s"]
    words += [] if row.speedup is None else [f"{row.speedup:.2f} x"]
    words += [] if row.psnr_db is None else [f"{row.psnr_db:.0f} dB"]
    return ",  ".join(words)


def _bars(axes: Axes, rows: Sequence[Row]) -> None:
    most = max(max(row.seconds or 0, row.seconds_p90 or 0) for row in rows)
    axes.set_xlim(0, 1.35 * most)  # the room on the right is for the words
    for line, row in enumerate(rows):
        seconds, late = row.seconds or 0.0, row.seconds_p90 or 0.0
        axes.barh(line, seconds, height=0.66, color=_TWO if row.ranks == 2 else _ONE)
        axes.plot([seconds, late], [line, line], color=INK, linewidth=1.2)
        axes.annotate(
            note(row),
            xy=(max(seconds, late), line),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            size=8,
            color=INK,
        )
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the first row on top
    axes.set_yticks(range(len(rows)), [label(r.mode, r.backend, r.scope) for r in rows])
    axes.set_facecolor(PAPER)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.tick_params(axis="x", colors=QUIET, labelsize=8)
    axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=9)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("seconds of a picture (median; line: 90th percentile)", color=QUIET, size=8)
