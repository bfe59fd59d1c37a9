"""The look that all charts share, and bars: for each model a panel, for each row a line of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from hybridiff_compile.ir import Phase

INK, QUIET, GRID, PAPER = "#1d2433", "#667085", "#e6e8ee", "#ffffff"
PHASE_COLOURS = {Phase.SERIAL: "#3b6fb6", Phase.PIPELINED: "#f08a24"}
_DPI = 160
_LINE, _MARGIN, _HEAD, _FOOT = 0.38, 0.56, 0.45, 0.45  # inches
_WIDTH, _LABELS, _BETWEEN, _RIGHT = 5.6, 1.85, 0.45, 0.35  # inches; the first is of a side


@dataclass(frozen=True)
class Bar:
    """A bar with words at its end.

    Attributes:
        value: where it ends.
        colour: its own.
        words: beside its end.
        late: where a thin line ends that begins at its end; None draws none.
    """

    value: float
    colour: str
    words: str
    late: float | None = None


@dataclass(frozen=True)
class Side:
    """One of the axes that a model's panel has side by side.

    Attributes:
        words: below it.
        lines: the bars of each row.
        limits: of a log axis, which has no zero for bars to start at; None is a linear one.
        room: how far a linear axis goes beyond the longest bar, for the words.
    """

    words: str
    lines: Sequence[Sequence[Bar]]
    limits: tuple[float, float] | None = None
    room: float = 1.15


@dataclass(frozen=True)
class Panel:
    """A model: its title, the labels of its rows, and its sides."""

    title: str
    labels: Sequence[str]
    sides: Sequence[Side]


def draw(
    path: Path, panels: Sequence[Panel], kinds: Mapping[str, str] | None = None, note: str = ""
) -> None:
    """Write one PNG.

    Args:
        path: the PNG.
        panels: one below the other.
        kinds: words and colours of the legend.
        note: at the foot.
    """
    heights = [_HEAD + _LINE * len(panel.labels) + _MARGIN for panel in panels]
    sides = max(len(panel.sides) for panel in panels)
    height = sum(heights) + _FOOT
    width = _LABELS + sides * _WIDTH + (sides - 1) * _BETWEEN + _RIGHT
    figure, top = Figure(figsize=(width, height), facecolor=PAPER), 0.0
    for panel, taken in zip(panels, heights, strict=True):
        bottom, tall = 1 - (top + taken - _MARGIN) / height, _LINE * len(panel.labels) / height
        y = 1 - (top + 0.3) / height
        figure.text(0.02, y, panel.title, size=13, weight="bold", color=INK, va="center")
        for i, side in enumerate(panel.sides):
            left = (_LABELS + i * (_WIDTH + _BETWEEN)) / width
            axes = figure.add_axes((left, bottom, _WIDTH / width, tall))
            _side(axes, side, panel.labels if i == 0 else [""] * len(panel.labels))
        top += taken
    if kinds:
        legend(figure, [Patch(color=colour, label=words) for words, colour in kinds.items()])
    figure.text(0.02, 0.1 / height, note, size=7, color=QUIET)
    save(figure, path)


def _side(axes: Axes, side: Side, labels: Sequence[str]) -> None:
    style(axes, "x")
    bars = [bar for line in side.lines for bar in line]
    if side.limits is not None:
        axes.set_xscale("log")
        axes.set_xlim(*side.limits)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        most = max((max(bar.value, bar.late or 0.0) for bar in bars), default=1.0)
        axes.set_xlim(0, side.room * most)
    start = side.limits[0] if side.limits else 0.0
    for row, line in enumerate(side.lines):
        thick = 0.76 / max(2, len(line)) if len(side.lines[0]) != 1 or len(line) > 1 else 0.66
        for place, bar in enumerate(line):
            y = row + thick * (place - (len(line) - 1) / 2)
            axes.barh(y, bar.value - start, left=start, height=0.92 * thick, color=bar.colour)
            if bar.late is not None:
                axes.plot([bar.value, bar.late], [y, y], color=INK, linewidth=1.2)
            at = (max(bar.value, bar.late or 0.0), y)
            beside(axes, bar.words, at, (4, 0), va="center", size=8)
    axes.set_ylim(len(labels) - 0.4, -0.6)  # the first row on top
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_xlabel(side.words, color=QUIET, size=9)


def beside(
    axes: Axes, words: str, at: tuple[float, float], offset: tuple[float, float], **how: Any
) -> None:
    """Write words beside a point, `offset` in points of type."""
    how = {"color": INK, **how}
    axes.annotate(words, xy=at, xytext=offset, textcoords="offset points", **how)


def style(axes: Axes, grid: Any = "both") -> None:
    """Quiet axes on the left and at the bottom, and a grid."""
    axes.set_facecolor(PAPER)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.tick_params(which="both", colors=QUIET, labelsize=9)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def legend(figure: Figure, handles: Sequence[Any]) -> None:
    """One line of what the colours mean, at the foot."""
    figure.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.08 / figure.get_figheight()),
        ncols=len(handles),
        frameon=False,
        labelcolor=INK,
        fontsize=9,
    )


def save(figure: Figure, path: Path) -> None:
    """Write a figure, and the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
