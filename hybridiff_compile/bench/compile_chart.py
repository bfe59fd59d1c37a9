"""The compile benchmark as a bar chart: seconds until ready on the left, a steady step beside."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from hybridiff_compile.bench.compile_table import label
from hybridiff_compile.bench.figures import Row
from hybridiff_compile.bench.plots import PHASE_COLOURS
from hybridiff_compile.bench.style import GRID, INK, PAPER, QUIET, save
from hybridiff_compile.ir import Phase

#: Bars of the left side by key of the figures, with their words and colours.
READY: Mapping[str, tuple[str, str]] = {
    "compile_seconds_cold": ("compile, empty cache", "#5b4b9a"),
    "compile_seconds_warm": ("compile, warm cache", "#b3a6dd"),
    "load_seconds": ("load a package", "#2a9d74"),
}
#: Bars of the right side by phase of the figures.
STEP: Mapping[str, tuple[str, str]] = {
    "serial": ("serial step", PHASE_COLOURS[Phase.SERIAL]),
    "pipelined": ("pipelined step", PHASE_COLOURS[Phase.PIPELINED]),
}
_ROW, _MARGIN, _HEAD, _LEGEND = 0.42, 0.62, 0.45, 0.45  # inches
_WIDTH, _LABELS, _BETWEEN, _RIGHT = 11.0, 1.75, 0.45, 0.35  # inches


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Write one PNG: for each model, a line of bars for each row.

    Seconds have one log axis for all models, so that their bars can be compared; a log axis has no
    zero, so its bars start at a power of ten and each bears its figure. Steps have a linear axis
    from zero for each model.
    """
    models = [(name, list(group)) for name, group in groupby(rows, key=lambda row: row.model)]
    heights = [_HEAD + _ROW * len(of) + _MARGIN for _, of in models]
    height = sum(heights) + _LEGEND
    figure = Figure(figsize=(_WIDTH, height), facecolor=PAPER)
    width = (_WIDTH - _LABELS - _BETWEEN - _RIGHT) / 2
    limits = decades([s for row in rows for s in _ready(row).values()])
    top = 0.0
    for (name, of), taken in zip(models, heights, strict=True):
        bottom = 1 - (top + taken - _MARGIN) / height
        size = (width / _WIDTH, _ROW * len(of) / height)
        left = figure.add_axes((_LABELS / _WIDTH, bottom, *size))
        right = figure.add_axes(((_LABELS + width + _BETWEEN) / _WIDTH, bottom, *size))
        figure.text(
            0.02, 1 - (top + 0.3) / height, name, size=13, weight="bold", color=INK, va="center"
        )
        _seconds(left, of, limits)
        _steps(right, of)
        top += taken
    _legend(figure, height)
    save(figure, path)


def _ready(row: Row) -> dict[str, float]:
    found = {key: getattr(row, key) for key in READY}
    return {key: value for key, value in found.items() if value is not None}


def decades(values: Sequence[float]) -> tuple[float, float]:
    """Limits of a log axis: from a power of ten below the least value to room beyond the most."""
    if not values:
        return 0.1, 10.0
    return 10.0 ** math.floor(math.log10(min(values) / 1.5)), max(values) * 3


def _seconds(axes: Axes, rows: Sequence[Row], limits: tuple[float, float]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _bars(axes, [_ready(row) for row in rows], READY, start=limits[0])
    _style(axes, rows, "seconds until all ranks are ready (log axis)")


def _steps(axes: Axes, rows: Sequence[Row]) -> None:
    values = [{p: ms for p, ms in (row.step_ms_by_phase or {}).items() if ms} for row in rows]
    most = max((ms for of in values for ms in of.values()), default=1.0)
    axes.set_xlim(0, 1.15 * most)
    _bars(axes, [dict(of) for of in values], STEP, start=0.0)
    _style(axes, rows, "a steady step, ms (median)")
    axes.set_yticklabels([])


def _bars(
    axes: Axes,
    values: Sequence[Mapping[str, float]],
    kinds: Mapping[str, tuple[str, str]],
    start: float,
) -> None:
    for line, of in enumerate(values):
        thick = 0.76 / max(2, len(of))
        for place, (key, value) in enumerate(of.items()):
            y = line + thick * (place - (len(of) - 1) / 2)
            axes.barh(y, value - start, left=start, height=0.92 * thick, color=kinds[key][1])
            axes.annotate(
                f"{value:.1f}" if value >= 1 else f"{value:.2f}",
                xy=(value, y),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                size=7.5,
                color=INK,
            )


def _style(axes: Axes, rows: Sequence[Row], words: str) -> None:
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the first row on top
    axes.set_yticks(range(len(rows)), [label(r.mode, r.backend, r.scope) for r in rows])
    axes.set_facecolor(PAPER)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.tick_params(axis="x", which="both", colors=QUIET, labelsize=8)
    axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=9)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(words, color=QUIET, size=9)


def _legend(figure: Figure, height: float) -> None:
    handles = [
        Patch(color=colour, label=words) for words, colour in (*READY.values(), *STEP.values())
    ]
    figure.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.08 / height),
        ncols=len(handles),
        frameon=False,
        labelcolor=INK,
        fontsize=9,
    )
