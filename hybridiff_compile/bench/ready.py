"""A row of a benchmark inside of its process: the pipeline, prepared up to its first picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

import hybridiff_compile
from hybridiff_compile import Model, lower
from hybridiff_compile.bench import models, ranks
from hybridiff_compile.bench.figures import Backend, Mode, Scope
from hybridiff_compile.bench.measure import APART, Contender

PROMPT = "a red circle left of a blue square on a dark green background"


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes:
        model: one of `models.NAMES`, or the folder of a pipeline.
        mode, backend, scope: as in the figures; one device has no scope.
        call: keywords of the pipeline's calls, without prompt and seed.
        cache: folder for Inductor's caches, empty; for a process of its own only.
        switching: further keywords of `optimize`.
        package: folder of a package, for backend "aot".
        exports: it writes the package, and makes no picture.
    """

    model: str
    mode: Mode
    backend: Backend
    scope: Scope | None
    call: Mapping[str, Any]
    cache: Path = Path()
    switching: Mapping[str, Any] = field(default_factory=dict)
    package: Path | None = None
    exports: bool = False


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

    def steady_seconds(self) -> float:
        """Of a call after the first one, median."""
        return median(self.seconds[1:])

    def compiling_seconds(self) -> float:
        """Of the first call, which compiles and then computes as the later ones do."""
        return max(0.0, self.seconds[0] - self.steady_seconds())


@dataclass(frozen=True)
class Ready:
    """A contender that makes its first picture next; one device compiles in the midst of that.

    Attributes:
        job: that it is for.
        contender: it.
        model: what runs it on two ranks; None on one device.
        timed: the denoiser of one device that is left as it is, or compiled by torch.compile.
        seconds: until all ranks were ready; None where nothing was prepared.
        preparing_seconds: from the loaded pipeline until now.
        graphs: that each rank has.
        compiled: those that the ranks had compiled by now.
    """

    job: Job
    contender: Contender
    model: Model | None = None
    timed: Timed | None = None
    seconds: float | None = None
    preparing_seconds: float = 0.0
    graphs: tuple[int, ...] = ()
    compiled: int = 0

    def watch(self) -> ranks.Watch:
        """Watch the memory of its ranks' processes."""
        return ranks.Watch(ranks.pids(self.model))

    def taken(self, watch: ranks.Watch, first: float) -> dict[str, Any]:
        """What its processes took so far, as keys of a row; and `denoiser_ms` of one device.

        Args:
            watch: of their memory.
            first: seconds of the first picture, which was made before.
        """
        seconds, graphs, compiled = self.seconds, self.graphs, self.compiled
        if self.timed and self.job.backend != "eager":
            compiled = self.timed.compilations[0]
            seconds, graphs = self.timed.compiling_seconds(), (compiled,)
        found: dict[str, Any] = {
            "ranks": len(watch.peak_pss),
            "peak_rss_mb": [b / 1e6 for b in watch.peak_rss()],
            "peak_pss_mb": [b / 1e6 for b in watch.peak_pss],
            "first_picture_seconds": self.preparing_seconds + first,
            "load_seconds" if self.job.package else "compile_seconds_cold": seconds,
        }
        if self.timed:
            found["denoiser_ms"] = 1000 * self.timed.steady_seconds()
        if self.job.backend != "eager":
            recompiles = sum(ranks.compilations(self.model)) - compiled
            found |= {"graphs": graphs, "recompiles": recompiles}
        return found


@contextmanager
def opened(job: Job) -> Iterator[Ready]:
    """Load a job's pipeline and prepare it; it is restored at the end."""
    pipe, _ = models.opened(job.model)
    scheduler, begin = type(pipe.scheduler).__name__, time.perf_counter()
    if job.mode == "one-device":
        timed, contender = timed_denoiser(pipe, job.backend), Contender(job.mode, scheduler, pipe)
        yield Ready(job, contender, timed=timed)
        return
    loads = job.package is not None and not job.exports
    how: dict[str, Any] = {"mode": job.mode, **job.switching}
    if job.mode == "one-device-apart":
        how = dict(APART)
    elif job.package is None:
        how |= {"backend": job.backend} | ({"scope": job.scope} if job.scope else {})
    if job.package is not None and loads:
        model = hybridiff_compile.load(job.package, pipe)
    else:
        model = hybridiff_compile.optimize(pipe, **how)
    begin_ready = begin if loads else time.perf_counter()  # opening a package is part of the work
    with model:
        contender = Contender(job.mode, scheduler, model, lambda: model.report)
        if job.mode == "one-device-apart":
            yield Ready(job, contender)
            return
        model.compile(progress=False, **job.call)
        seconds = time.perf_counter() - begin_ready
        if job.package is not None and job.exports:
            hybridiff_compile.export(model, job.package, format="aot", progress=False)
        compiled = ranks.compilations(model)
        graphs = tuple(ranks.packaged(model) if loads else compiled)
        preparing = time.perf_counter() - begin
        yield Ready(job, contender, model, None, seconds, preparing, graphs, sum(compiled))


def timed_denoiser(pipe: Any, backend: Backend) -> Timed:
    """Put a clock around a pipeline's denoiser, compiled by torch.compile or left alone."""
    name = next(n for n in ("unet", "transformer") if isinstance(getattr(pipe, n, None), nn.Module))
    if backend == "inductor":
        setattr(pipe, name, torch.compile(getattr(pipe, name)))
    denoiser = getattr(pipe, name)
    denoiser.forward = timed = Timed(denoiser.forward)
    return timed
