"""Measure the modes of one pipeline side by side: same prompts, same seeds, same clock."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from hybridiff_compile.bench.figures import Mode
from hybridiff_compile.quality import Pictures
from hybridiff_compile.runtime.report import RunReport

Name = TypeVar("Name", bound=str)
#: How `optimize` is called for mode `one-device-apart`.
APART: Mapping[str, Any] = {"gpus": 1, "mode": "exact"}


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


def make(contender: Contender, prompt: str, seed: int, **call: Any) -> Made:
    """Make one prompt's picture and note how long each part took."""
    ends, last = list[float](), dict[str, torch.Tensor]()

    def step_ended(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        ends.append(time.perf_counter())
        last.update(tensors)
        return {}

    begin = time.perf_counter()
    out = contender.make(
        prompt,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="np",
        callback_on_step_end=step_ended,
        **call,
    )
    seconds = time.perf_counter() - begin
    if not ends:
        raise ValueError(f"{contender.mode}: the pipeline ran no step")
    return Made(
        seconds=seconds,
        step_seconds=tuple(np.diff(ends).tolist()),
        latents=last["latents"].detach().clone(),
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
    """Make every prompt's picture with every contender, in turn.

    Args:
        ready: the contenders, of one mode each.
        prompts: prompt i gets seed i, with every contender.
        tell: see `in_turn`.
        call: further keywords of the pipeline's call.

    Returns:
        What each mode made, in the order of the prompts.
    """

    def maker(contender: Contender) -> Callable[[int], Made]:
        return lambda seed: make(contender, prompts[seed], seed, **call)

    with one_thread():
        return in_turn({c.mode: maker(c) for c in ready}, len(prompts), tell)


def in_turn(
    makers: Mapping[Name, Callable[[int], Made]], rounds: int, tell: Callable[[str], None]
) -> dict[Name, list[Made]]:
    """What each maker made after a picture that warms up; each round starts with another one.

    A machine that slows down then slows all of them alike.

    Args:
        makers: by name; each makes the picture of a seed.
        rounds: of seeds from 0 on; 0 warms up.
        tell: told what begins, in a few words: a name and its turn, warm-up included.
    """
    made: dict[Name, list[Made]] = {name: [] for name in makers}
    for name in made:
        tell(f"{name}, warming up")
        makers[name](0)
    for seed in range(rounds):
        names = deque(made)
        names.rotate(-seed)
        for name in names:
            tell(f"{name}, picture {seed + 1} of {rounds}")
            made[name].append(makers[name](seed))
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
