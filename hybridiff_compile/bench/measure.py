"""Measure the modes of one pipeline side by side: same prompts, same seeds, same clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hybridiff_compile import optimize
from hybridiff_compile.bench import models
from hybridiff_compile.bench.figures import Mode
from hybridiff_compile.quality import Pictures
from hybridiff_compile.runtime.report import RunReport

#: How `optimize` is called for each mode; None leaves the pipeline as it is.
MODES: Mapping[Mode, dict[str, Any] | None] = {
    "one-device": None,
    "one-device-apart": {"gpus": 1, "mode": "exact"},
    "exact": {"gpus": 2, "mode": "exact"},
    "paper": {"gpus": 2, "mode": "paper"},
    "hybrid": {"gpus": 2, "mode": "hybrid"},
}


@dataclass(frozen=True)
class Contender:
    """One mode of one pipeline, ready to make pictures.

    Attributes:
        mode: its name in the figures.
        scheduler: class name of the pipeline's scheduler.
        make: takes a pipeline call's arguments and returns its output.
        report: what the last call did; None for a pipeline that was left as it is.
    """

    mode: Mode
    scheduler: str
    make: Callable[..., Any]
    report: Callable[[], RunReport | None] = lambda: None


@dataclass(frozen=True)
class Made:
    """One call's pictures and what it took to make them.

    Attributes:
        seconds: the whole call, from the prompt to the pictures.
        step_seconds: from the end of one step to the end of the next, so one fewer than steps. One
            clock for every mode: it also holds the scheduler and the pipeline's own work.
        latents: after the last step.
        pictures: (count, height, width, 3) in [0, 1].
        report: None for a pipeline that was left as it is.
    """

    seconds: float
    step_seconds: tuple[float, ...]
    latents: torch.Tensor
    pictures: Pictures
    report: RunReport | None


@dataclass
class _StepClock:
    """A pipeline's `callback_on_step_end`: notes the time and the latents."""

    ends: list[float] = field(default_factory=list)
    latents: torch.Tensor | None = None

    def __call__(
        self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        self.ends.append(time.perf_counter())
        self.latents = tensors["latents"]
        return {}


@contextmanager
def contenders(name: str, modes: Sequence[Mode] = tuple(MODES)) -> Iterator[list[Contender]]:
    """Load a pipeline for each mode and optimize it; restore and close them all at the end.

    Each mode has a pipeline of its own so that pictures can be made in turn: a machine that slows
    down then slows all modes alike. Workers that wait use no processor time.
    """
    with ExitStack() as stack:
        ready = []
        for mode in modes:
            pipe, _ = models.opened(name)
            scheduler, settings = type(pipe.scheduler).__name__, MODES[mode]
            if settings is None:
                ready.append(Contender(mode, scheduler, pipe))
                continue
            model = stack.enter_context(optimize(pipe, **settings))
            ready.append(Contender(mode, scheduler, model, lambda model=model: model.report))
        yield ready


def make(contender: Contender, prompt: str, seed: int, **call: Any) -> Made:
    """Make one prompt's picture and note how long each part took."""
    clock = _StepClock()
    begin = time.perf_counter()
    out = contender.make(
        prompt,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="np",
        callback_on_step_end=clock,
        **call,
    )
    seconds = time.perf_counter() - begin
    if clock.latents is None:
        raise ValueError(f"{contender.mode}: the pipeline ran no step")
    return Made(
        seconds=seconds,
        step_seconds=tuple(np.diff(clock.ends).tolist()),
        latents=clock.latents.detach().clone(),
        pictures=np.asarray(out.images),
        report=contender.report(),
    )


def measure(
    ready: Sequence[Contender],
    prompts: Sequence[str],
    *,
    tell: Callable[[str], None] = lambda what: None,
    **call: Any,
) -> dict[Mode, list[Made]]:
    """Make every prompt's picture with every contender, after one warm-up picture each.

    Args:
        ready: the contenders; each round of them starts with another one.
        prompts: prompt i gets seed i, with every contender.
        tell: told what begins, a mode's picture of a round, warm-up included.
        call: further keywords of the pipeline's call.

    Returns:
        What each mode made, in the order of the prompts.
    """
    made: dict[Mode, list[Made]] = {contender.mode: [] for contender in ready}
    with one_thread():
        for contender in ready:
            tell(f"{contender.mode}, warming up")
            make(contender, prompts[0], 0, **call)
        for seed, prompt in enumerate(prompts):
            first = seed % len(ready)
            for contender in (*ready[first:], *ready[:first]):
                tell(f"{contender.mode}, picture {seed + 1} of {len(prompts)}")
                made[contender.mode].append(make(contender, prompt, seed, **call))
    return made


@contextmanager
def one_thread() -> Iterator[None]:
    """One device of a CPU is one thread; the thread count is put back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
