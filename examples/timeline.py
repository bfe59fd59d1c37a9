"""What both ranks do while guided pipelining goes on, as a timeline, and its period beside theory.

Run it with `python examples/timeline.py` (a minute on two cores). It makes a picture with
`sdxl-small` and writes `timeline.png`. A guided step on rank 0 is stage0 of one branch (A seconds,
its features leave at the end); on rank 1 it is stage1 of the other branch's features of the step
before (B seconds). Transfers take X (features) and E (prediction). The design's period is
P = max(A, B, (A + X + B + E) / 2).
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch

import hybridiff_compile
from hybridiff_compile import Phase, RunReport
from hybridiff_compile.bench import models
from hybridiff_compile.bench.charts import GRID, INK, PAPER, QUIET, save
from hybridiff_compile.ir import GUIDED
from hybridiff_compile.runtime.report import RankStep

NAME, STEPS, TAU1, K = "sdxl-small", 50, 6, 40
SHOWN = range(TAU1 - 2, TAU1 + 7)
COLOURS = {Phase.SERIAL: "#3b6fb6", Phase.GUIDED_U: "#2a9d8f", Phase.GUIDED_C: "#f08a24"}
LABELS = {
    "serial: own branch, whole denoiser": COLOURS[Phase.SERIAL],
    "guided: a stage of branch u": COLOURS[Phase.GUIDED_U],
    "guided: a stage of branch c": COLOURS[Phase.GUIDED_C],
    "the pipeline fills": QUIET,
    "waiting": GRID,
}


def run() -> RunReport:
    """The report of a second picture: the first one of a shape captures."""
    pipe: Any = models.load(NAME)
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": STEPS, "output_type": "latent", **models.call_settings(NAME)}
    with hybridiff_compile.optimize(pipe, mode="guided", tau1=TAU1, k=K) as model:
        for seed in range(2):
            model("a red circle", generator=torch.Generator().manual_seed(seed), **call)
        return model.report


def colour_of(rank: int, step: int, report: RunReport) -> str:
    """By its phase and branch; guided, rank 1 works on the features of the step before."""
    phase = report.steps[step].phase
    if rank == 1 and phase in GUIDED:
        before = report.steps[step - 1].phase
        return COLOURS[before] if before in GUIDED else QUIET
    return COLOURS[phase]


def describe(report: RunReport) -> str:
    """Stage times, transfers, the period by the design and as measured, in milliseconds."""
    first, second = (
        {s.step: s for s in steps if report.steps[s.step].phase in GUIDED}
        for steps in report.rank_steps
    )
    steady = sorted(first)[2:]  # the first two fill the pipeline

    def computing(step: RankStep) -> float:
        assert step.sent is not None
        return step.sent - step.begin

    a = median(computing(first[i]) for i in steady)
    b = median(computing(second[i]) for i in steady)
    # A rank whose program ends after the other's value left has waited for it until then.
    x = median(max(0.0, second[i].end - (first[i].sent or 0)) for i in steady)
    e = median(max(0.0, first[i].end - (second[i].sent or 0)) for i in steady)
    theory = max(a, b, (a + x + b + e) / 2)
    period = median(first[j].begin - first[i].begin for i, j in pairwise(steady))
    names = {"A": a, "B": b, "X": x, "E": e, "P": theory, "measured period": period}
    figures = ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in names.items())
    return f"{figures}: {period / theory:.3f} of P"


def draw(report: RunReport, path: Path) -> None:
    """Write the timeline of the steps around the entry into the guided phase."""
    figure = Figure(figsize=(11, 2.9), facecolor=PAPER, layout="constrained")
    axes = figure.subplots()
    start = next(s.begin for s in report.rank_steps[0] if s.step == SHOWN[0])
    for rank, steps in enumerate(report.rank_steps):
        for step in (s for s in steps if s.step in SHOWN):
            until = step.end if step.sent is None else step.sent
            colour = colour_of(rank, step.step, report)
            spans = [(step.begin, until, colour), (until, step.end, GRID)]
            for begin, end, colour in spans:
                left, width = 1000 * (begin - start), 1000 * (end - begin)
                axes.barh(rank, width, 0.62, left, color=colour, edgecolor=PAPER, linewidth=0.8)
            middle = 1000 * ((step.begin + until) / 2 - start)
            axes.text(middle, rank, str(step.step), color=PAPER, ha="center", va="center", size=9)
    axes.set_yticks([0, 1], ["rank 0", "rank 1"], color=INK)
    axes.invert_yaxis()
    axes.set_xlabel("ms; the number is the step", color=INK)
    axes.tick_params(colors=QUIET)
    axes.spines[["top", "right", "left"]].set_visible(False)
    handles = [Patch(color=colour, label=words) for words, colour in LABELS.items()]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=5, frameon=False, labelcolor=INK
    )
    save(figure, path)


def main() -> None:
    """Make the picture, print what its steps took and write the timeline."""
    torch.set_num_threads(1)
    report = run()
    print(describe(report))
    draw(report, Path("timeline.png"))
    print("wrote timeline.png")


if __name__ == "__main__":
    main()
