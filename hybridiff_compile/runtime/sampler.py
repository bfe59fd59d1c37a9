"""What a pipeline's sampler is given, and does it add noise of its own? Found from its steps."""

from __future__ import annotations

import copy
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_SEEDS = (0, 1)

#: Called before a step of a scheduler, with the arguments of its `step`.
Before = Callable[[tuple[Any, ...], dict[str, Any]], None]
#: Called after one, with the noisy picture that it made.
After = Callable[[torch.Tensor], None]


@contextmanager
def watched(
    scheduler: Any, before: Before | None = None, after: After | None = None
) -> Iterator[None]:
    """Within this, something is called before or after each step of a scheduler.

    Args:
        scheduler: of a pipeline whose call is under way within this; it is left as it was. Copies
            of it that are made meanwhile are not watched.
        before: with the pipeline's own arguments.
        after: with what the step made.
    """
    own, found = scheduler.step, vars(scheduler).get("step")

    @functools.wraps(type(scheduler).step)  # pipelines look at the names of its parameters
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is not scheduler:
            return type(self).step(self, *args, **kwargs)
        if before is not None:
            before(args, kwargs)
        out = own(*args, **kwargs)
        if after is not None:
            after(_made(out))
        return out

    # A bound method, because a deep copy of one is bound to the copy of the scheduler.
    scheduler.step = types.MethodType(step, scheduler)
    try:
        yield
    finally:
        vars(scheduler).pop("step", None)
        if found is not None:
            scheduler.step = found


def num_steps(pipe: Any) -> int:
    """Steps of the call that is under way, once its first one has begun.

    A pipeline that does not tell runs the scheduler's time steps: from where its scheduler begins,
    and not more than it has told its guider of.
    """
    if (steps := getattr(pipe, "num_timesteps", None)) is not None:
        return int(steps)
    scheduler = pipe.scheduler
    steps = len(scheduler.timesteps) - (getattr(scheduler, "begin_index", None) or 0)
    guider: Any = getattr(pipe, "guider", None)
    told = guider.get_state().get("num_inference_steps") if hasattr(guider, "get_state") else None
    return steps if told is None else min(steps, told * getattr(scheduler, "order", 1))


def inputs(
    scheduler: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """What a scheduler's step is given: the prediction, its first argument, and the noisy picture.

    None for one that is no tensor.
    """
    try:
        given = inspect.signature(scheduler.step).bind_partial(*args, **kwargs).arguments
    except TypeError:  # the step itself will say what is wrong
        return None, None
    found = next(iter(given.values()), None), given.get("sample")
    prediction, sample = (x if isinstance(x, torch.Tensor) else None for x in found)
    return prediction, sample


def draws_noise(scheduler: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a scheduler's step depends on random numbers: it is tried on copies, with two seeds.

    Args:
        scheduler: before the step.
        args, kwargs: of its `step`.
    """
    made = []
    for seed in _SEEDS:
        trial, given = copy.deepcopy(scheduler), dict(kwargs)
        if given.get("generator") is not None:
            given["generator"] = _seeded(given["generator"], seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            out = trial.step(*args, **given)
        made.append(_made(out))
    return not torch.equal(*made)


def _made(out: Any) -> torch.Tensor:
    return out[0] if isinstance(out, tuple) else out.prev_sample


def _seeded(generator: Any, seed: int) -> Any:
    if isinstance(generator, list):
        return [_seeded(g, seed + i) for i, g in enumerate(generator)]
    return torch.Generator(generator.device).manual_seed(seed)
