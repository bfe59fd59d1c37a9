"""Does a pipeline's sampler add noise of its own? Found from what it does, not from its name."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_SEEDS = (0, 1)


@contextmanager
def watched(scheduler: Any, tell: Callable[[bool], None]) -> Iterator[None]:
    """Within this, the scheduler's first step also tells whether it draws noise.

    Args:
        scheduler: of a pipeline whose call is under way within this; it is left as it was.
        tell: called once, before the first step is made, with the pipeline's own arguments at hand.
    """
    own = scheduler.step

    @functools.wraps(own)  # pipelines look at the names of its parameters
    def step(*args: Any, **kwargs: Any) -> Any:
        vars(scheduler).pop("step", None)
        tell(draws_noise(scheduler, args, kwargs))
        return own(*args, **kwargs)

    scheduler.step = step
    try:
        yield
    finally:
        vars(scheduler).pop("step", None)


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
