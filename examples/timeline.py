"""What both ranks do while guided pipelining goes on, as a timeline, and its period beside theory.

Run it with `python examples/timeline.py` (a minute on two cores). It makes a picture with
`sdxl-small` and writes `timeline.png`. A guided step on rank 0 is stage0 of one branch (A seconds,
its features leave at the end); on rank 1 it is stage1 of the other branch's features of the step
before (B seconds). Transfers take X (features) and E (prediction). The design's period is
P = max(A, B, (A + X + B + E) / 2).
"""

from __future__ import annotations

from itertools import pairwise
from statistics import median
from typing import Any

import torch

import hybridiff_compile
from hybridiff_compile import RunReport
from hybridiff_compile.bench import models
from hybridiff_compile.ir import GUIDED
from hybridiff_compile.runtime.report import RankStep

NAME, STEPS, TAU1, K = "sdxl-small", 50, 6, 40


def run() -> RunReport:
    """The report of a second picture: the first one of a shape captures."""
    pipe: Any = models.load(NAME)
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": STEPS, "output_type": "latent", **models.call_settings(NAME)}
    with hybridiff_compile.optimize(pipe, mode="guided", tau1=TAU1, k=K) as model:
        for seed in range(2):
            model("a red circle", generator=torch.Generator().manual_seed(seed), **call)
        return model.report


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


def main() -> None:
    """Make the picture, print what its steps took and draw them."""
    torch.set_num_threads(1)
    report = run()
    print(describe(report))
    report.plot().savefig("timeline.png", dpi=110)
    print("wrote timeline.png")


if __name__ == "__main__":
    main()
