"""The images that commands write: bars by row, a run step by step, pictures, points of a sweep.

All of them leave it to matplotlib's constrained layout to find room for their words.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from hybridiff_compile.bench.cost import frontier
from hybridiff_compile.ir import Phase
from hybridiff_compile.quality import Pictures, to_bytes
from hybridiff_compile.style import COMPUTED, GRID, INK, PAPER, PIPELINED, QUIET

PHASE_COLOURS = {Phase.SERIAL: COMPUTED, Phase.PIPELINED: PIPELINED}
_DPI = 160
_TITLE: dict[str, Any] = {"loc": "left", "size": 13, "weight": "bold", "color": INK, "pad": 10}
_LEGEND: dict[str, Any] = {"frameon": False, "labelcolor": INK, "fontsize": 9}


@dataclass(frozen=True)
class Bar:
    """A bar up to `value`, a thin line from there up to `late` unless that is None, then words."""

    value: float
    colour: str
    words: str
    late: float | None = None


@dataclass(frozen=True)
class Side:
    """One of the axes that a panel has side by side.

    Attributes:
        words: below it.
        lines: the bars of each row.
        is_log: all panels have the same log axis here, so that their bars can be compared.
    """

    words: str
    lines: Sequence[Sequence[Bar]]
    is_log: bool = False


@dataclass(frozen=True)
class Panel:
    """A model: its title, the labels of its rows, and its sides."""

    title: str
    labels: Sequence[str]
    sides: Sequence[Side]


def bars(path: Path, panels: Sequence[Panel], kinds: Mapping[str, str], note: str = "") -> None:
    """Write one PNG: for each model a panel, for each row a line of bars.

    Args:
        path: the PNG.
        panels: one below the other.
        kinds: words and colours of the legend.
        note: above the legend.
    """
    counts, across = [len(panel.labels) for panel in panels], len(panels[0].sides)
    figure = _figure(1.9 + 5.8 * across, 0.38 * sum(counts) + 1.1 * len(panels) + 0.4)
    grid = figure.subplots(len(panels), across, squeeze=False, height_ratios=counts)
    for panel, row in zip(panels, grid, strict=True):
        row[0].set_title(panel.title, **_TITLE)
        for axes, side in zip(row, panel.sides, strict=True):
            _draw_bars(axes, side)
            axes.set_ylim(len(panel.labels) - 0.4, -0.6)  # the first row on top
            axes.set_yticks(range(len(panel.labels)), panel.labels if axes is row[0] else [])
            axes.tick_params(axis="y", length=0, labelcolor=INK)
    for place in range(across):
        sides = [panel.sides[place] for panel in panels]
        if sides[0].is_log:
            limits = decades([bar.value for side in sides for line in side.lines for bar in line])
            for axes in grid[:, place]:
                axes.set(xscale="log", xlim=limits)
                axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    patches = [Patch(color=colour, label=words) for words, colour in kinds.items()]
    _legend(figure, patches, note)
    figure.savefig(path, dpi=_DPI)


def _draw_bars(axes: Axes, side: Side) -> None:
    _style(axes, "x")
    thick = 0.76 / max(1, *(len(line) for line in side.lines))
    for row, line in enumerate(side.lines):
        for place, bar in enumerate(line):
            y = row + thick * (place - (len(line) - 1) / 2)
            late = None if bar.late is None else [[0.0], [bar.late - bar.value]]
            drawn = axes.barh(y, bar.value, 0.9 * thick, color=bar.colour, xerr=late, ecolor=INK)
            axes.bar_label(drawn, [bar.words], padding=4, size=8, color=INK)
    longest = max((len(bar.words) for line in side.lines for bar in line), default=0)
    axes.margins(x=0.016 * longest)  # room for the words beyond the longest bar
    axes.set_xlabel(side.words, color=QUIET, size=9)


def decades(values: Sequence[float]) -> tuple[float, float]:
    """Limits of a log axis: from a power of ten below the least value to room beyond the most.

    A log axis has no zero for bars to start at.
    """
    if not values:
        return 0.1, 10.0
    return 10.0 ** math.floor(math.log10(min(values) / 1.5)), max(values) * 3


@dataclass(frozen=True)
class Trace:
    """What happened step by step in one model's runs.

    Attributes:
        model: title of its column.
        discrepancies: M_i of every step, for each picture of a run that measures all of them.
        phases: of every step of the paper's run.
        step_ms: of every step of the paper's run; nan where it was not measured.
        tau1, tau2: of the paper's run; None if it never pipelined.
        baselines: name and milliseconds of a step of two other modes, drawn as lines.
    """

    model: str
    discrepancies: Sequence[Sequence[float]]
    phases: Sequence[Phase]
    step_ms: Sequence[float]
    tau1: int | None
    tau2: int | None
    baselines: Mapping[str, float]


def step_by_step(path: Path, traces: Sequence[Trace]) -> None:
    """Write one plot: a column for each model, discrepancy above, time per step below."""
    figure = _figure(5.4 * len(traces) + 0.4, 6.4)
    grid = figure.subplots(2, len(traces), squeeze=False, sharex="col")
    for (above, below), trace in zip(grid.T, traces, strict=True):
        _plot_discrepancy(above, trace)
        _plot_times(below, trace)
    one = Line2D([], [], color=INK, linewidth=0.8, alpha=0.35, label="one picture")
    mean = Line2D([], [], color=INK, linewidth=2, label="mean over pictures, exact run")
    steps = {f"{p.name.lower()} step, paper run": c for p, c in PHASE_COLOURS.items()}
    patches = [Patch(color=c, label=words) for words, c in steps.items()]
    _legend(figure, [mean, one, *patches], columns=2)
    figure.savefig(path, dpi=_DPI)


def _plot_discrepancy(axes: Axes, trace: Trace) -> None:
    _style(axes, "y")
    axes.set_title(trace.model, **_TITLE)
    curves = np.asarray(trace.discrepancies, dtype=float).T
    axes.plot(curves, color=INK, linewidth=0.6, alpha=0.15)
    axes.plot(curves.mean(axis=1), color=INK, linewidth=2)
    # The room above the curves is for the label.
    axes.set_ylim(bottom=0, top=1.25 * float(curves.max()))
    axes.set_ylabel("discrepancy $M_i$", color=INK)
    if trace.tau1 is None or trace.tau2 is None:
        return
    begin, end = trace.tau1 - 0.5, trace.tau2 - 0.5
    axes.axvspan(begin, end, color=PIPELINED, alpha=0.16, linewidth=0)
    axes.vlines([begin, end], 0, 1, PIPELINED, linewidth=1.2, transform=axes.get_xaxis_transform())
    words = rf"$\tau_1$ = {trace.tau1},  $\tau_2$ = {trace.tau2}"
    is_late = begin + end > len(curves)
    at, offset, side = (begin, -6, "right") if is_late else (end, 6, "left")
    how: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "ha": side, "va": "top"}
    axes.annotate(words, (at, 1), (offset, -4), textcoords="offset points", color=INK, **how)


def _plot_times(axes: Axes, trace: Trace) -> None:
    _style(axes, "y")
    colours = {phase.kind: colour for phase, colour in PHASE_COLOURS.items()}
    bars_of = [colours.get(phase.kind, QUIET) for phase in trace.phases]
    axes.bar(range(len(trace.step_ms)), trace.step_ms, width=0.82, color=bars_of)
    # Beside the bars, the upper label growing upwards: close lines keep their labels apart.
    by_height = sorted(trace.baselines.items(), key=lambda item: item[1])
    for (name, ms), line, grows in zip(by_height, (":", "--"), ("top", "bottom"), strict=True):
        axes.axhline(ms, color=INK, linewidth=1.1, linestyle=line)
        how: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": grows, "size": 9}
        words = f"{name}\n{ms:.1f} ms"
        axes.annotate(words, (1, ms), (5, 0), textcoords="offset points", color=INK, **how)
    axes.set_ylim(0, 1.15 * max(float(np.nanmax(trace.step_ms)), *trace.baselines.values()))
    axes.set_xlim(-0.8, len(trace.step_ms) - 0.2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("step (the first is not timed)", color=INK)
    axes.set_ylabel("time of a step, ms", color=INK)


@dataclass(frozen=True)
class Shown:
    """A picture and the short note that stands under it."""

    picture: Pictures
    note: str = ""


def pictures_side_by_side(
    path: Path,
    captions: Sequence[str],
    models: Mapping[str, Mapping[str, Sequence[Shown]]],
    footnote: str,
) -> None:
    """Write one PNG: a row for each prompt, and for each model a column for each mode.

    Args:
        path: the PNG.
        captions: the prompts, one a row.
        models: model -> label of the mode -> that mode's picture of every prompt.
        footnote: what the notes under the pictures mean.
    """
    columns = [(name, label, of) for name, modes in models.items() for label, of in modes.items()]
    figure = _figure(1.6 * len(columns) + 1.6, 1.9 * len(captions) + 0.7)
    grid = figure.subplots(len(captions), len(columns), squeeze=False)
    for row, (cells, caption) in enumerate(zip(grid, captions, strict=True)):
        words = "\n".join(textwrap.wrap(caption, 19))
        cells[0].set_ylabel(words, rotation=0, ha="right", va="center", size=9, color=INK)
        for axes, (_, _, of) in zip(cells, columns, strict=True):
            axes.imshow(to_bytes(of[row].picture), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color(GRID)
            axes.set_xlabel(of[row].note, size=8, color=QUIET)
    for axes, (name, label, _) in zip(grid[0], columns, strict=True):
        axes.set_title(f"{name}\n{label}", size=10, color=INK)
    figure.supxlabel("\n".join(textwrap.wrap(footnote, 24 * len(columns))), size=8, color=QUIET)
    figure.savefig(path, dpi=_DPI)


@dataclass(frozen=True)
class Dot:
    """A point, more being better in both directions, and what it is in words."""

    x: float
    y: float
    colour: str
    words: str


def scatter(path: Path, clouds: Mapping[str, Sequence[Dot]], x: str, y: str) -> None:
    """Write one PNG: a panel for each title, with numbered points and a line along the best ones.

    Args:
        path: the PNG.
        clouds: title -> points; none at all is an empty picture.
        x, y: words of the axes.
    """
    figure = _figure(9.4, 4.4 * max(1, len(clouds)))
    panels = figure.subplots(max(1, len(clouds)), squeeze=False)[:, 0]
    for axes, (title, dots) in zip(panels, clouds.items(), strict=False):
        _style(axes)
        best = [dots[i] for i in frontier([(dot.x, dot.y) for dot in dots])]
        for number, dot in enumerate(dots, 1):
            # Points in one place share a mark, which bears the numbers of all of them.
            here = [n for n, of in enumerate(dots, 1) if (of.x, of.y) == (dot.x, dot.y)]
            layer = 3 if any(dots[n - 1] in best for n in here) else 2  # the best lie on top
            how: dict[str, Any] = {"markersize": 13, "markeredgecolor": PAPER, "zorder": layer}
            axes.plot(dot.x, dot.y, "o", label=f"{number}  {dot.words}", color=dot.colour, **how)
            at: dict[str, Any] = {"ha": "center", "va": "center_baseline", "zorder": layer}
            at |= {"size": 7 if len(here) == 1 else 5, "weight": "bold", "color": PAPER}
            if number == here[-1]:
                axes.text(dot.x, dot.y, " ".join(map(str, here)), **at)
        xs, ys = [dot.x for dot in best], [dot.y for dot in best]
        axes.plot(xs, ys, color=QUIET, linewidth=1, zorder=1, label="no point beats these")
        axes.margins(0.08)
        axes.set_xlabel(x, color=INK)
        axes.set_ylabel(y, color=INK)
        axes.set_title(title, **_TITLE)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), **_LEGEND)
    figure.savefig(path, dpi=_DPI)


def _figure(width: float, height: float) -> Figure:
    """An empty figure; inches."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, hspace=0.03)
    return Figure(figsize=(width, height), facecolor=PAPER, layout=layout)


def _style(axes: Axes, grid: Any = "both") -> None:
    """Quiet axes on the left and at the bottom, and a grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.tick_params(which="both", colors=QUIET, labelsize=9)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _legend(figure: Figure, handles: Sequence[Any], note: str = "", columns: int = 5) -> None:
    """What the colours mean, at the foot."""
    how = {"loc": "outside lower center", "ncols": columns, "title_fontsize": 7, **_LEGEND}
    figure.legend(handles=handles, title=note, **how).get_title().set_color(QUIET)
