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
from hybridiff_compile import lower
from hybridiff_compile.bench import models, ranks
from hybridiff_compile.bench.figures import Backend, Mode, Scope
from hybridiff_compile.bench.measure import Contender, make

PROMPT = "a red circle left of a blue square on a dark green background"


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes:
        model: one of `models.NAMES`, or the folder of a pipeline.
        mode, backend, scope: as in the figures; one device has no scope.
        call: keywords of the pipeline's calls, without prompt and seed.
        cache: folder for Inductor's caches, empty.
        switching: further keywords of `optimize`.
        package: folder of a package, for backend "aot".
        exports: it writes the package, and makes no picture.
    """

    model: str
    mode: Mode
    backend: Backend
    scope: Scope | None
    call: Mapping[str, Any]
    cache: Path
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


@dataclass(frozen=True)
class Ready:
    """A contender that could make its first picture now.

    Attributes:
        contender: it.
        seconds: until all ranks were ready; None where nothing was prepared.
        preparing_seconds: from the loaded pipeline until now.
        pids: of its ranks.
        compilations: graphs that each rank has compiled so far.
        compiled: all of them when it was ready.
        graphs: that each rank has.
        timed: one device's denoiser.
        first_picture_seconds: where preparing made a picture.
    """

    contender: Contender
    seconds: float | None
    preparing_seconds: float
    pids: list[int]
    compilations: Callable[[], list[int]]
    compiled: int = 0
    graphs: tuple[int, ...] = ()
    timed: Timed | None = None
    first_picture_seconds: float | None = None


@contextmanager
def opened(job: Job) -> Iterator[Ready]:
    """Load a job's pipeline and prepare it; it is restored at the end."""
    pipe, _ = models.opened(job.model)
    if job.mode == "one-device":
        yield _one_device(job, pipe)
        return
    how: dict[str, Any] = {"mode": job.mode, **job.switching}
    if job.mode == "one-device-apart":
        how = {"gpus": 1, "mode": "exact"}
    elif job.package is None:
        how |= {"backend": job.backend} | ({"scope": job.scope} if job.scope else {})
    begin = time.perf_counter()
    loads = job.package is not None and not job.exports
    if job.package is not None and loads:
        model = hybridiff_compile.load(job.package, pipe)
    else:
        model = hybridiff_compile.optimize(pipe, **how)
    begin_ready = begin if loads else time.perf_counter()  # opening a package is part of the work
    with model:
        contender = Contender(job.mode, type(pipe.scheduler).__name__, model, lambda: model.report)
        if job.mode == "one-device-apart":
            yield Ready(contender, None, 0.0, [ranks.own_pid()], _compiled_here)
            return
        model.compile(progress=False, **job.call)
        seconds = time.perf_counter() - begin_ready
        if job.package is not None and job.exports:
            hybridiff_compile.export(model, job.package, format="aot", progress=False)
        compiled = ranks.compilations(model)
        yield Ready(
            contender,
            seconds,
            time.perf_counter() - begin,
            [ranks.own_pid(), ranks.worker_pid(model)],
            lambda: ranks.compilations(model),
            sum(compiled),
            tuple(ranks.packaged(model) if loads else compiled),
        )


def _one_device(job: Job, pipe: Any) -> Ready:
    """The pipeline as it is, its denoiser compiled by torch.compile or left alone."""
    begin = time.perf_counter()
    timed = timed_denoiser(pipe, job.backend)
    contender, pids = Contender(job.mode, type(pipe.scheduler).__name__, pipe), [ranks.own_pid()]
    if job.backend == "eager":
        return Ready(contender, None, 0.0, pids, _compiled_here, timed=timed)
    make(contender, PROMPT, 0, **job.call)
    return Ready(
        contender,
        compiling_seconds(timed),
        0.0,
        pids,
        _compiled_here,
        timed.compilations[0],
        (timed.compilations[0],),
        timed,
        time.perf_counter() - begin,
    )


def _compiled_here() -> list[int]:
    return [lower.compilations()]


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
