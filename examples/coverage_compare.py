"""A tiny pipeline as it is, and optimized: what came of a call, and how far off it is."""

from __future__ import annotations

import contextlib
import logging
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from coverage_calls import models, patterns, watched
from coverage_cases import Arrays, Made
from coverage_rows import Pattern
from torch import nn
from torch.utils import _pytree as pytree

import hybridiff_compile

STEPS = 3  # that are asked for
_LONG = 8  # with which hybrid has steps between its first and its last ones
_MOST_STEPS = 60
_SHAKEN = 1e-6  # relative change of a prediction, about that of another order of summation


@dataclass(frozen=True)
class Plain:
    """A pipeline as it is.

    Attributes:
        made: its tiny pipeline.
        result: of `STEPS` steps.
        patterns: of its denoisers.
        is_steady: whether a second call gives the same.
        long: steps to ask for where steps are to be extrapolated.
    """

    made: Made
    result: Arrays
    patterns: tuple[Pattern, ...]
    is_steady: bool
    long: int


def plain(made: Made) -> Plain:
    """Run a pipeline as it is, twice."""
    with watched(made.pipe) as steps:
        result = made.call(STEPS)
    by_denoiser = Counter(calls[-1].name for calls in steps[:-1] if calls)
    seen = max(by_denoiser.values(), default=STEPS)  # one with a picture to begin with takes fewer
    long = math.ceil(_LONG * STEPS / seen)
    again = made.call(STEPS)
    return Plain(
        made, result, patterns(steps), difference(again, result) == 0, min(long, _MOST_STEPS)
    )


def difference(ours: Arrays, theirs: Arrays) -> float:
    """Largest difference, relative to the largest value; infinite for other shapes or no number."""
    if [a.shape for a in ours] != [b.shape for b in theirs]:
        return math.inf
    if not all(np.isfinite(a).all() for a in (*ours, *theirs)):
        return math.inf
    size = max((np.abs(b).max() for b in theirs if b.size), default=0.0)
    off = max((np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True) if a.size), default=0)
    return float(off / max(size, 1e-12))


@dataclass
class Tried:
    """What came of a call in a mode.

    Attributes:
        result: that it returned; empty if it was refused or failed.
        ranks: that took part.
        left: denoiser calls that were left to the pipeline.
        phases: steps by what was done in them.
        said: warnings, each once.
        refused: what was said instead of a picture.
        error: that nobody expects.
    """

    result: Arrays
    ranks: int = 0
    left: int = 0
    phases: dict[str, int] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    refused: str = ""
    error: str = ""


def attempt(made: Made, steps: int, **settings: Any) -> Tried:
    """Optimize a pipeline, make a picture, restore it."""
    model = None
    with heard() as said:
        try:
            model = hybridiff_compile.optimize(made.pipe, **settings)
            result = made.call(steps)
            report = model.report
        except hybridiff_compile.HybridiffError as e:
            return Tried([], said=tuple(said), refused=str(e))
        except Exception as e:
            return Tried([], said=tuple(said), error=f"{type(e).__name__}: {e}"[:600])
        finally:
            if model is not None:
                model.close()
    return Tried(result, report.ranks, report.unguided, report.steps_by_phase, tuple(said))


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """What the package warns of within this, each sentence once."""
    said: dict[str, None] = {}

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said[record.getMessage()] = None
            texts[:] = list(said)

    texts: list[str] = []
    handler, logger = Handler(logging.WARNING), logging.getLogger("hybridiff_compile")
    logger.addHandler(handler)
    try:
        yield texts
    finally:
        logger.removeHandler(handler)


def shaken(of: Plain) -> float:
    """How far the result is off where each prediction is, by about its roundings.

    Some random weights and schedulers magnify them a thousand times.
    """
    generator = torch.Generator().manual_seed(11)

    def shake(module: nn.Module, args: Any, answer: Any) -> Any:
        def one(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or not value.is_floating_point():
                return value
            noise = torch.randn(value.shape, generator=generator)
            return value * (1 + _SHAKEN * noise).to(value.dtype)

        return pytree.tree_map(one, answer)

    with contextlib.ExitStack() as stack:
        for module in models(of.made.pipe).values():
            stack.callback(module.register_forward_hook(shake).remove)
        return difference(of.made.call(STEPS), of.result)
