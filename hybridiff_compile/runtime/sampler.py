"""What a pipeline's sampler does: its steps, and whether it adds noise; found by watching it."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_SEEDS = (0, 1)


@contextmanager
def watched(
    scheduler: Any, tell: Callable[[bool], None] | None, stepped: Callable[[], None]
) -> Iterator[None]:
    """Within this, the scheduler's steps are counted; the first one may tell if it draws noise.

    Args:
        scheduler: of a pipeline whose call is under way within this; it is left as it was.
        tell: called once, before the first step is made, with the pipeline's own arguments at
            hand; None looks for no noise, which costs two trial steps.
        stepped: called before every step.
    """
    own, before = scheduler.step, vars(scheduler).get("step")
    told = tell is None

    def put_back() -> None:
        vars(scheduler).pop("step", None)
        if before is not None:
            scheduler.step = before

    @functools.wraps(type(scheduler).step)  # pipelines look at the names of its parameters
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal told
        if self is not scheduler:  # a deep copy, as a pipeline makes for a second output
            return type(self).step(self, *args, **kwargs)
        if not told and tell is not None:
            told = True
            put_back()  # the trial's copies step by themselves
            tell(draws_noise(scheduler, args, kwargs))
            scheduler.step = bound
        stepped()
        return own(*args, **kwargs)

    # A bound method, because a deep copy of one is bound to the copy of the scheduler.
    bound = scheduler.step = types.MethodType(step, scheduler)
    try:
        yield
    finally:
        put_back()


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
        made.append(out[0] if isinstance(out, tuple) else out.prev_sample)
    return not torch.equal(*made)


def _seeded(generator: Any, seed: int) -> Any:
    if isinstance(generator, list):
        return [_seeded(g, seed + i) for i, g in enumerate(generator)]
    return torch.Generator(generator.device).manual_seed(seed)
