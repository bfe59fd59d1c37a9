"""What happened step by step, as a plot: discrepancy above, time per step below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from hybridiff_compile.bench.charts import INK, PAPER, PHASE_COLOURS, beside, save, style
from hybridiff_compile.ir import Phase


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
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, hspace=0.04)
    size = (5.4 * len(traces) + 0.4, 6.4)
    figure = Figure(figsize=size, facecolor=PAPER, layout=layout)
    grid = figure.subplots(2, len(traces), squeeze=False, sharex="col")
    for column, trace in enumerate(traces):
        _plot_discrepancy(grid[0, column], trace)
        _plot_times(grid[1, column], trace)
    _legend(figure)
    save(figure, path)


def _plot_discrepancy(axes: Axes, trace: Trace) -> None:
    style(axes, "y")
    axes.set_title(trace.model, loc="left", size=14, weight="bold", color=INK, pad=12)
    curves = np.asarray(trace.discrepancies, dtype=float)
    steps = np.arange(curves.shape[1])
    for curve in curves:
        axes.plot(steps, curve, color=INK, linewidth=0.6, alpha=0.15)
    axes.plot(steps, curves.mean(axis=0), color=INK, linewidth=2)
    # The room above the curves is for the label.
    axes.set_ylim(bottom=0, top=1.25 * float(curves.max()))
    axes.set_ylabel("discrepancy $M_i$", color=INK)
    if trace.tau1 is None or trace.tau2 is None:
        return
    begin, end, colour = trace.tau1 - 0.5, trace.tau2 - 0.5, PHASE_COLOURS[Phase.PIPELINED]
    axes.axvspan(begin, end, color=colour, alpha=0.16, linewidth=0)
    for edge in (begin, end):
        axes.axvline(edge, color=colour, linewidth=1.2)
    late = begin + end > len(steps)
    words = rf"$\tau_1$ = {trace.tau1},  $\tau_2$ = {trace.tau2}"
    at, offset, side = (begin, -6, "right") if late else (end, 6, "left")
    how = {"xycoords": ("data", "axes fraction"), "ha": side, "va": "top"}
    beside(axes, words, (at, 1), (offset, -4), **how)


def _plot_times(axes: Axes, trace: Trace) -> None:
    style(axes, "y")
    steps, times = np.arange(len(trace.step_ms)), np.asarray(trace.step_ms, dtype=float)
    for phase, colour in PHASE_COLOURS.items():
        chosen = np.array([p.kind == phase.kind for p in trace.phases])
        axes.bar(steps[chosen], times[chosen], width=0.82, color=colour)
    # Beside the bars, the upper label growing upwards: close lines keep their labels apart.
    by_height = sorted(trace.baselines.items(), key=lambda item: item[1])
    for (name, ms), line, grows in zip(by_height, (":", "--"), ("top", "bottom"), strict=True):
        axes.axhline(ms, color=INK, linewidth=1.1, linestyle=line)
        how = {"xycoords": ("axes fraction", "data"), "va": grows, "size": 9}
        beside(axes, f"{name}\n{ms:.1f} ms", (1, ms), (5, 0), **how)
    top = max([float(np.nanmax(times)), *trace.baselines.values()])
    axes.set_ylim(0, 1.15 * top)
    axes.set_xlim(-0.8, len(times) - 0.2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("step (the first is not timed)", color=INK)
    axes.set_ylabel("time of a step, ms", color=INK)


def _legend(figure: Figure) -> None:
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=INK, linewidth=2, label="mean over pictures, exact run"),
        Line2D([], [], color=INK, linewidth=0.8, alpha=0.35, label="one picture"),
        *(
            Patch(color=c, label=f"{p.name.lower()} step, paper run")
            for p, c in PHASE_COLOURS.items()
        ),
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=2, frameon=False, labelcolor=INK
    )
