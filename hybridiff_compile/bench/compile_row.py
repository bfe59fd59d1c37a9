"""One row of `hybridiff bench --compile`, measured in a process of its own.

`compile_bench` starts it as `python -m hybridiff_compile.bench.compile_row JOB`, with the job as
JSON and Inductor's cache folder in the environment; it prints what it found as one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch
from torch import nn

import hybridiff_compile
from hybridiff_compile import lower
from hybridiff_compile.bench import models, ranks, summary
from hybridiff_compile.bench.figures import Backend, Mode, PhaseName, Scope
from hybridiff_compile.bench.measure import Contender, make, one_thread
from hybridiff_compile.runtime.report import RunReport

PROMPT = "a red circle left of a blue square on a dark green background"
MEGABYTE = 1e6


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes:
        model: one of `models.NAMES`.
        mode: "one-device", "exact" or "paper".
        backend, scope: as in the figures; one device has no scope.
        steps: of a picture, 6 or more.
        runs: pictures after the first one; 0 measures only until all ranks are ready.
        package: folder of an exported package, for backend "aot".
    """

    model: str
    mode: Mode
    backend: Backend
    scope: Scope | None
    steps: int
    runs: int
    package: str | None = None

    def to_json(self) -> str:
        """The job as one argument of a command line."""
        return json.dumps(asdict(self))

    def call(self) -> dict[str, Any]:
        """Keywords of its pipeline calls, without prompt and seed."""
        return {"num_inference_steps": self.steps, **models.call_settings(self.model)}

    def settings(self) -> dict[str, Any]:
        """Keywords of `optimize`, without backend and scope."""
        return {"mode": self.mode, **(schedule(self.steps) if self.mode == "paper" else {})}


def schedule(steps: int) -> dict[str, int]:
    """The paper's mode in thirds, serial, pipelined, serial: both phases, swapped twice."""
    return {"tau1": steps // 3, "k": steps // 3}


def measure(job: Job) -> dict[str, Any]:
    """Measure a job.

    Returns:
        Keys of a row of figures, and `ready_seconds`: until all ranks were ready, cold, warm or by
        loading, which only the caller knows.
    """
    pipe: Any = models.load(job.model)
    pipe.set_progress_bar_config(disable=True)
    with one_thread():
        return _one_device(job, pipe) if job.mode == "one-device" else _two_ranks(job, pipe)


def export(job: Job) -> dict[str, Any]:
    """Export the job's package, which a later process measures."""
    pipe: Any = models.load(job.model)
    with one_thread(), hybridiff_compile.optimize(pipe, **job.settings()) as model:
        model.compile(progress=False, **job.call())
        assert job.package is not None
        hybridiff_compile.export(model, job.package, format="aot", progress=False)
    return {}


@dataclass
class Timed:
    """A denoiser's `forward` with a clock around it.

    Attributes:
        seconds: of each call.
        compilations: graphs compiled in this process by the end of each call.
    """

    forward: Callable[..., Any]
    seconds: list[float] = field(default_factory=list)
    compilations: list[int] = field(default_factory=list)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        begin = time.perf_counter()
        out = self.forward(*args, **kwargs)
        self.seconds.append(time.perf_counter() - begin)
        self.compilations.append(lower.compilations())
        return out


def timed_denoiser(pipe: Any, backend: Backend) -> Timed:
    """Put a clock around a pipeline's denoiser, compiled by torch.compile or left alone."""
    name = next(n for n in ("unet", "transformer") if isinstance(getattr(pipe, n, None), nn.Module))
    if backend == "inductor":
        setattr(pipe, name, torch.compile(getattr(pipe, name)))
    denoiser = getattr(pipe, name)
    denoiser.forward = timed = Timed(denoiser.forward)
    return timed


def compiling_seconds(timed: Timed) -> float:
    """Of the first call, which compiles and then computes as the later ones do."""
    return max(0.0, timed.seconds[0] - median(timed.seconds[1:]))


def _one_device(job: Job, pipe: Any) -> dict[str, Any]:
    """The pipeline as it is, its denoiser compiled by torch.compile or left alone."""
    begin = time.perf_counter()
    timed = timed_denoiser(pipe, job.backend)
    contender = Contender(job.mode, type(pipe.scheduler).__name__, pipe)
    watch = ranks.Watch([ranks.own_pid()])
    pictures = _pictures(contender, job, begin, watch)
    found = {**pictures, "step_ms_by_phase": {"serial": 1000 * median(timed.seconds[1:])}}
    if job.backend == "eager":
        return found
    return found | {
        "ready_seconds": compiling_seconds(timed),
        "graphs": [timed.compilations[0]],
        "recompiles": timed.compilations[-1] - timed.compilations[0],
    }


def _two_ranks(job: Job, pipe: Any) -> dict[str, Any]:
    """The pipeline on two ranks, compiled or loaded from a package."""
    begin = time.perf_counter()
    if job.package is None:
        lowered: Any = {"backend": job.backend, "scope": job.scope}
        opened = hybridiff_compile.optimize(pipe, **job.settings(), **lowered)
        begin_ready = time.perf_counter()
    else:
        opened = hybridiff_compile.load(job.package, pipe)
        begin_ready = begin  # a package's share of the work is in opening it
    with opened as model:
        model.compile(progress=False, **job.call())
        ready = {"ready_seconds": time.perf_counter() - begin_ready}
        if job.runs == 0:
            return ready
        compiled = ranks.compilations(model)
        watch = ranks.Watch([ranks.own_pid(), ranks.worker_pid(model)])
        scheduler = type(pipe.scheduler).__name__
        contender = Contender(job.mode, scheduler, model, lambda: model.report)
        found = _pictures(contender, job, begin, watch)
        return {
            **ready,
            **found,
            "graphs": compiled if job.package is None else ranks.packaged(model),
            "recompiles": sum(ranks.compilations(model)) - sum(compiled),
        }


def _pictures(contender: Contender, job: Job, begin: float, watch: ranks.Watch) -> dict[str, Any]:
    """Make the first picture and the others; what they took and what they are like."""
    made = [make(contender, PROMPT, 0, **job.call())]
    first = time.perf_counter() - begin
    watch.look()
    for seed in range(1, 1 + job.runs):
        made.append(make(contender, PROMPT, seed, **job.call()))
        watch.look()
    later = made[1:] or made
    shown = later[0]
    batch, height, width, _ = shown.pictures.shape
    return {
        "scheduler": contender.scheduler,
        "steps": job.steps,
        "guidance_scale": job.call()["guidance_scale"],
        "height": height,
        "width": width,
        "batch": batch,
        "dtype": str(shown.latents.dtype).removeprefix("torch."),
        "first_picture_seconds": first,
        "seconds": median(m.seconds for m in later),
        "runs": len(later),
        "steps_by_phase": summary.steps_by_phase(shown),
        "peak_rss_mb": [b / MEGABYTE for b in watch.peak_rss()],
        "peak_pss_mb": [b / MEGABYTE for b in watch.peak_pss],
        **_of_reports([m.report for m in later if m.report is not None]),
    }


def _of_reports(reports: list[RunReport]) -> dict[str, Any]:
    if not reports:
        return {}
    first = reports[0]
    found: dict[str, Any] = {
        "bytes_sent": first.bytes_sent,
        "step_ms_by_phase": step_ms_by_phase(reports),
    }
    if first.tau1 is not None and first.tau2 is not None:
        found |= {"tau1": first.tau1, "k": first.tau2 - first.tau1}
    return found


def step_ms_by_phase(reports: list[RunReport]) -> dict[PhaseName, float]:
    """Median milliseconds of a denoiser call in each phase, by the driver's clock."""
    times: dict[PhaseName, list[float]] = defaultdict(list)
    for step in (s for report in reports for s in report.steps):
        times[summary.phase_name(step.phase)].append(1000 * step.seconds)
    return {name: median(of) for name, of in times.items()}


def main() -> None:
    """Do the job that the command line holds: `measure JOB` or `export JOB`."""
    task = {"measure": measure, "export": export}[sys.argv[1]]
    sys.stdout.write(f"{json.dumps(task(Job(**json.loads(sys.argv[2]))))}\n")


if __name__ == "__main__":
    main()
