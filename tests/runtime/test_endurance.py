"""500 steps through both phases: nothing unwaited, nothing that grows; one copy of the weights."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

import hybridiff_compile
from hybridiff_compile import ops
from hybridiff_compile.runtime import messages
from tests import pipelines

NAME = "tiny-sd3"


def rss_mb() -> float:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def worker_status(model: Any) -> messages.Status:
    return model._session.ranks.driver.fleet.ask(messages.Ask())


@pytest.mark.slow
def test_500_steps_leave_nothing_behind() -> None:
    settings = {"num_inference_steps": 50}
    with hybridiff_compile.optimize(pipelines.load(NAME), mode="paper", tau1=10, k=30) as model:
        for _ in range(2):
            pipelines.latents(model, NAME, **settings)
        unwaited, driver, worker = ops.unwaited(), rss_mb(), worker_status(model)
        for _ in range(10):
            pipelines.latents(model, NAME, **settings)
        assert model.report.steps_by_phase == {"serial": 20, "pipelined": 30, "forecast": 0}
        after = worker_status(model)
        assert ops.unwaited() == unwaited
        assert after.unwaited == 0
        sent_mb = (after.sent_bytes - worker.sent_bytes) / 1e6
        # A leak of what is sent or received would show: it is some megabytes on either side.
        assert sent_mb > 2
        assert rss_mb() - driver < 4
        assert after.rss_mb - worker.rss_mb < 4


def mapped_kb(pid: int | str, what: str) -> int:
    """Kilobytes of a process that map the published weights: `Rss` or `Pss` (shared fairly)."""
    total, inside = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0] and ":" not in line.split(" ")[0]:
            inside = "hybridiff-weights-" in line
        elif inside and line.startswith(f"{what}:"):
            total += int(line.split()[1])
    return total


@pytest.mark.slow
def test_the_ranks_share_one_host_copy_of_the_weights() -> None:
    gc.collect()
    others = mapped_kb("self", "Pss")  # pipelines of other tests map weights, too
    pipe = pipelines.load("sdxl-small")
    weights_kb = sum(p.nbytes for p in pipe.unet.parameters()) / 1024
    model: Any
    with hybridiff_compile.optimize(pipe) as model:
        pipelines.latents(model, "sdxl-small", num_inference_steps=2)
        worker = model._session.ranks.driver.fleet._process.pid
        for pid in ("self", worker):
            assert mapped_kb(pid, "Rss") > 0.95 * weights_kb
        both = mapped_kb("self", "Pss") + mapped_kb(worker, "Pss")
    assert both - others < 1.05 * weights_kb
