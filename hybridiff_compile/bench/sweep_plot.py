"""The sweep as a plot: speed-up by cost to the right, fidelity upwards, one panel a setting."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hybridiff_compile.bench.charts import INK, PAPER, QUIET, beside, legend, save, style
from hybridiff_compile.bench.cost import by_cost, frontier
from hybridiff_compile.bench.figures import Row
from hybridiff_compile.bench.grid import label
from hybridiff_compile.bench.labels import place
from hybridiff_compile.bench.tables import setting

COLOURS = {
    "exact": "#667085",
    "paper": "#f08a24",
    "guided": "#3b6fb6",
    "forecast": "#2a9d74",
    "hybrid": "#a23b8f",
    "asyncdiff": "#8a6d3b",
}
_WIDTH, _HEIGHT = 5.6, 4.4  # of a panel with its margins, inches
_LEFT, _RIGHT, _BOTTOM, _TOP, _LEGEND = 0.75, 0.25, 0.7, 0.55, 0.5  # inches
_ACROSS = 2
_SIZE = 9  # of the labels, points


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Write one PNG.

    Args:
        path: the PNG.
        rows: of a sweep; those without cost or PSNR, such as the reference, are left out.
    """
    shown = [row for row in rows if by_cost(row) is not None and row.psnr_db is not None]
    panels = [list(group) for _, group in groupby(shown, key=setting)]
    across = min(_ACROSS, max(1, len(panels)))
    down = max(1, -(-len(panels) // across))
    width, height = across * _WIDTH, down * _HEIGHT + _LEGEND
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    inner = ((_WIDTH - _LEFT - _RIGHT) / width, (_HEIGHT - _TOP - _BOTTOM) / height)
    for i, panel in enumerate(panels):
        x = (i % across) * _WIDTH + _LEFT
        y = height - (i // across + 1) * _HEIGHT + _BOTTOM
        _panel(figure.add_axes((x / width, y / height, *inner)), panel)
    legend(figure, _handles({row.mode for row in shown}))
    save(figure, path)


def _panel(axes: Axes, rows: Sequence[Row]) -> None:
    points = [(by_cost(row) or 0.0, row.psnr_db or 0.0) for row in rows]
    _frame(axes, rows[0], points)
    best = frontier(points)
    axes.plot(*zip(*(points[i] for i in best), strict=True), color=QUIET, linewidth=1, zorder=1)
    for row, (x, y) in zip(rows, points, strict=True):
        axes.plot(x, y, "o", color=COLOURS[row.mode], markersize=7, markeredgecolor=PAPER)
    words = [label(row) for row in rows]
    scale = 72 / axes.figure.dpi  # pixels to points
    at = [tuple(v * scale for v in axes.transData.transform(p)) for p in points]
    box = axes.bbox
    bounds = (box.x0 * scale, box.y0 * scale, box.x1 * scale, box.y1 * scale)
    # Those on the frontier choose their places first.
    order = [*best, *(i for i in range(len(points)) if i not in best)]
    sizes, line = [_extent(words[i]) for i in order], [at[i] for i in best]
    corners = place([at[i] for i in order], sizes, bounds, line)
    for i, corner in zip(order, corners, strict=True):
        if corner is not None:
            offset = (corner[0] - at[i][0], corner[1] - at[i][1])
            how = {"size": _SIZE, "color": COLOURS[rows[i].mode], "va": "bottom"}
            beside(axes, words[i], points[i], offset, **how)


def _extent(words: str) -> tuple[float, float]:
    """About how wide and high the words are, points."""
    return 0.6 * _SIZE * len(words), 1.25 * _SIZE


def _frame(axes: Axes, row: Row, points: Sequence[tuple[float, float]]) -> None:
    xs, ys = zip(*points, strict=True)
    axes.set_xlim(0.95 * min(1.0, *xs), 1.0 + 1.18 * (max(xs) - 1.0) + 0.1)
    margin = 0.12 * (max(ys) - min(ys)) + 1
    axes.set_ylim(min(ys) - margin, max(ys) + margin)
    style(axes)
    axes.set_xlabel("speed-up over exact by cost, messages free", color=INK)
    axes.set_ylabel("PSNR against one device, dB", color=INK)
    axes.set_title(row.model, loc="left", size=13, weight="bold", color=INK, pad=10)
    scheduler = (row.scheduler or "").removesuffix("Scheduler")
    words = f"{scheduler}, {row.steps} steps, {row.runs} pictures"
    axes.set_title(words, loc="right", size=9, color=QUIET, pad=10)


def _handles(modes: set[str]) -> list[Line2D]:
    """What the legend shows."""
    shown = [(mode, colour) for mode, colour in COLOURS.items() if mode in modes]
    points = [Line2D([], [], marker="o", linestyle="", color=c, label=mode) for mode, c in shown]
    return [*points, Line2D([], [], color=QUIET, linewidth=1, label="frontier")]
