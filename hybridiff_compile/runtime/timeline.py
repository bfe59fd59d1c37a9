"""What a run did, as a picture: the ranks' steps on a time line, and the errors that were seen."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from hybridiff_compile.ir import Phase
from hybridiff_compile.runtime.report import RankStep, RunReport, StepRecord
from hybridiff_compile.style import (
    COMPUTED,
    EXTRAPOLATED,
    GRID,
    INK,
    PAPER,
    PIPELINED,
    QUIET,
    WAITING,
)

_COLOURS = {
    "computed": COMPUTED,
    "pipelined": PIPELINED,
    "extrapolated": EXTRAPOLATED,
    "waiting for the other rank": WAITING,
}
_WORDS = {"serial": "computed", "pipelined": "pipelined", "forecast": "extrapolated"}

# The number of a step is written into a bar that has this share of the whole width or more.
_LEGIBLE = 0.014


class Bar(NamedTuple):
    """Something that a rank did.

    Attributes:
        rank: whose.
        begin, end: seconds since the first step began.
        what: a key of the colours.
        step: its index; None where it is not one step.
    """

    rank: int
    begin: float
    end: float
    what: str
    step: int | None = None


def bars(report: RunReport) -> list[Bar]:
    """What each rank did and when; of one rank, its steps end to end."""
    if not (report.rank_steps and all(report.rank_steps)):
        ends = [0.0, *accumulate(step.seconds for step in report.steps)]
        pairs = zip(report.steps, pairwise(ends), strict=True)
        return [Bar(0, *span, _WORDS[step.phase.kind], step.index) for step, span in pairs]
    zeros = _zeros(report.rank_steps)
    found = [
        bar
        for rank, steps in enumerate(report.rank_steps)
        for step in steps
        for bar in _of_step(rank, step, zeros[rank], report.steps)
    ]
    return [*found, *_extrapolated(report.rank_steps[0], zeros[0], report.steps)]


def _zeros(rank_steps: Sequence[Sequence[RankStep]]) -> list[float]:
    """What each rank's clock showed when the run began.

    The ranks meet in each step. If their first steps do not overlap, they are on two hosts, whose
    clocks do not compare: each rank's time then begins with its own first step.
    """
    firsts = [steps[0] for steps in rank_steps]
    begins = [step.begin for step in firsts]
    is_one_clock = max(begins) <= min(step.end for step in firsts)
    return [min(begins)] * len(begins) if is_one_clock else begins


def _of_step(rank: int, step: RankStep, zero: float, records: Sequence[StepRecord]) -> list[Bar]:
    """The part of a step that a rank computes, and the rest, where it is known."""
    if step.step >= len(records):  # one whose answer was not used
        return []
    record, sent = records[step.step], step.end if step.sent is None else step.sent
    own = Bar(rank, step.begin - zero, sent - zero, _WORDS[record.phase.kind], record.index)
    return [own, Bar(rank, sent - zero, step.end - zero, "waiting for the other rank")]


def _extrapolated(
    steps: Sequence[RankStep], zero: float, records: Sequence[StepRecord]
) -> list[Bar]:
    """The driver extrapolates between the steps that it computes, and perhaps after the last."""
    last = steps[-1]
    found = [
        Bar(0, a.end - zero, b.begin - zero, "extrapolated")
        for a, b in pairwise(steps)
        if any(r.phase is Phase.FORECAST for r in records[a.step + 1 : b.step])
    ]
    if after := records[last.step + 1 :]:
        end = last.end - zero
        found.append(Bar(0, end, end + sum(r.seconds for r in after), "extrapolated"))
    return found


def figure(report: RunReport) -> Figure:
    """Draw a run: its time line above, its errors below where any were seen."""
    shown, has_errors = bars(report), any(step.error is not None for step in report.steps)
    heights = (1, 1) if has_errors else (1,)
    drawn = Figure(figsize=(11, 0.2 + 2.6 * len(heights)), facecolor=PAPER, layout="constrained")
    grid = drawn.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    drawn.suptitle(f"{report.mode}: {report}", size=11, color=INK, x=0.01, ha="left", wrap=True)
    _draw_bars(grid[0], shown)
    used = {bar.what for bar in shown if bar.end > bar.begin}
    handles: list[Line2D | Patch] = [
        Patch(color=colour, label=what) for what, colour in _COLOURS.items() if what in used
    ]
    if has_errors:
        _draw_errors(grid[1], report)
        handles += _marks(report)
    drawn.legend(
        handles=handles, loc="outside lower center", ncols=4, frameon=False, labelcolor=INK
    )
    return drawn


def _marks(report: RunReport) -> list[Line2D]:
    """What the marks among the errors mean."""
    marks = [
        Line2D(
            [], [], color=INK, marker="o", markerfacecolor=face, linestyle="", label=f"error {of}"
        )
        for face, of in (
            (INK, "one step further on than was extrapolated"),
            (PAPER, "after a computed step"),
        )
    ]
    if report.tolerance is not None:
        marks.append(
            Line2D([], [], color=INK, linewidth=1.1, linestyle="--", label="tolerance of a step")
        )
    return marks


def _draw_bars(axes: Axes, shown: Sequence[Bar]) -> None:
    _style(axes, "x")
    whole = max((bar.end for bar in shown), default=1.0)
    for rank, begin, end, what, step in shown:
        edge = PAPER if what in ("computed", "pipelined") else "none"
        axes.barh(
            rank, end - begin, 0.62, begin, color=_COLOURS[what], edgecolor=edge, linewidth=0.5
        )
        if step is not None and end - begin >= _LEGIBLE * whole:
            middle = (begin + end) / 2
            axes.text(middle, rank, str(step), color=PAPER, ha="center", va="center", size=8)
    ranks = sorted({bar.rank for bar in shown})
    axes.set_yticks(ranks, [f"rank {rank}" for rank in ranks], color=INK)
    axes.set_xlim(0, whole)
    axes.invert_yaxis()
    axes.set_xlabel("s; the number is the step", color=INK)


def _draw_errors(axes: Axes, report: RunReport) -> None:
    """Errors by step, over what was done in each: filled where the step before was not computed."""
    _style(axes, "y")
    for before, step in zip([None, *report.steps], report.steps, strict=False):
        if step.phase.kind != "serial":
            colour = _COLOURS[_WORDS[step.phase.kind]]
            axes.axvspan(step.index - 0.5, step.index + 0.5, color=colour, alpha=0.3, linewidth=0)
        if step.error is not None:
            is_filled = before is not None and before.phase is not Phase.SERIAL
            face = INK if is_filled else PAPER
            axes.plot(step.index, step.error, "o", color=INK, markerfacecolor=face, markersize=5)
    if report.tolerance is not None:
        axes.axhline(report.tolerance, color=INK, linewidth=1.1, linestyle="--")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(-0.7, report.steps[-1].index + 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel("weighted error", color=INK)


def _style(axes: Axes, grid: Literal["x", "y"]) -> None:
    axes.set_facecolor(PAPER)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.tick_params(colors=QUIET, labelsize=9)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
