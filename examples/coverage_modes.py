"""One pipeline in each mode of `optimize`, compared with itself as it is."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import coverage_cases
import diffusers
import numpy as np
import torch
from coverage_calls import models, patterns, watched
from coverage_cases import Arrays, Made
from coverage_rows import Pattern, Result, Row
from suite_plugin import share_one_worker
from torch import nn
from torch.utils import _pytree as pytree

import hybridiff_compile

STEPS = 3  # that are asked for
_LONG = 8  # with which hybrid has steps between its first and its last ones
_MOST_STEPS = 60
_TOLERANCE = 1e-3  # of halves against their batch, relative: roundings, a few steps on
_SHAKEN = 1e-6  # relative change of a prediction, about that of another order of summation
_AMPLIFIED = 10  # times what that changes in the result
_SAID_BEFORE = ("one rank runs this denoiser call: ", "one rank runs this pipeline: ")


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


def finish(tried: Tried, wrong: list[str], **more: Any) -> Result:
    """The result of a mode.

    Args:
        tried: what came of it.
        wrong: what is wrong with it; empty if nothing is.
        more: fields of the result.
    """
    said = [shortened(text) for text in tried.said]
    if tried.error:
        wrong = [tried.error]
    if wrong:
        return Result(outcome="failed", reasons=(*wrong, *said), **more)
    if tried.refused:
        return Result(outcome="refused", reasons=(tried.refused,), **more)
    outcome = "two ranks" if tried.ranks > 1 else "one rank"
    return Result(
        outcome=outcome, reasons=tuple(said), left=tried.left, phases=tried.phases, **more
    )


def shortened(text: str) -> str:
    """A warning without the words that the table has already."""
    for start in _SAID_BEFORE:
        text = text.removeprefix(start)
    return text


def exact(of: Plain) -> Result:
    """Two ranks must have the bits of one device that runs the branches one after the other."""
    tried = attempt(of.made, STEPS, gpus=2, mode="exact")
    if tried.refused or tried.error:
        return finish(tried, [])
    apart = attempt(of.made, STEPS, gpus=1, mode="exact")
    batched, wrong = difference(tried.result, of.result), []
    same_as = ""
    if batched == 0:
        same_as = "plain"
    elif difference(tried.result, apart.result) == 0:
        same_as = "apart"
    if of.is_steady:
        if not same_as:
            off = difference(tried.result, apart.result)
            wrong.append(f"off by {off:.1e} from one device that runs the branches apart")
        if batched > _TOLERANCE and batched > _AMPLIFIED * shaken(of):
            wrong.append(f"off by {batched:.1e} from the plain pipeline")
        if (after := difference(of.made.call(STEPS), of.result)) > 0:
            wrong.append(f"off by {after:.1e} once it is restored")
    if tried.ranks < 2 and not tried.said:
        wrong.append("one rank, and no reason is given")
    return finish(
        tried, wrong, off_batched=batched if math.isfinite(batched) else None, same_as=same_as
    )


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


def hybrid(of: Plain) -> Result:
    """Extrapolation is forced; its pictures must be finite and have the right shape."""
    tried = attempt(of.made, of.long, gpus=2, mode="hybrid", tolerance=10.0, m=2)
    wrong = ill(tried, of)
    if not wrong and tried.ranks > 1 and not tried.phases["forecast"] and not tried.said:
        wrong.append("no step was extrapolated, and no reason is given")
    return finish(tried, wrong)


def paper(of: Plain) -> Result:
    """Two steps are pipelined, or a sentence says why not."""
    tried = attempt(of.made, of.long, gpus=2, mode="paper", tau1=2, k=2)
    wrong = ill(tried, of)
    if not wrong and not tried.refused and not tried.phases["pipelined"] and not tried.said:
        wrong.append("no step was pipelined, and no reason is given")
    return finish(tried, wrong)


def regional(of: Plain) -> Result:
    """Compiled blocks must come close to the plain pipeline."""
    tried = attempt(of.made, STEPS, mode="exact", backend="inductor", scope="regional")
    if tried.refused or tried.error:
        return finish(tried, [])
    off = difference(tried.result, of.result)
    wrong = [f"off by {off:.1e} from the plain pipeline"] if off > _TOLERANCE else []
    if not of.is_steady:
        wrong = []
    return finish(tried, wrong, off_batched=off if math.isfinite(off) else None)


def ill(tried: Tried, of: Plain) -> list[str]:
    """What is wrong with pictures that need not be the plain ones."""
    if tried.refused or tried.error:
        return []
    if [a.shape for a in tried.result] != [a.shape for a in of.result]:
        return ["other shapes than the plain pipeline's"]
    if not all(np.isfinite(a).all() for a in tried.result):
        return ["not finite"]
    return []


CHECKS: dict[str, Callable[[Plain], Result]] = {
    "exact": exact,
    "hybrid": hybrid,
    "paper": paper,
    "regional": regional,
}


def check(checkout: Path, case: str, modes: Sequence[str]) -> Iterator[Row]:
    """Build a pipeline and run it in these modes; gives its row each time that more is known.

    Args:
        checkout: of diffusers.
        case: `file::class`; the file is relative to the checkout.
        modes: keys of CHECKS.
    """
    torch.set_num_threads(1)
    gc.freeze()  # what is imported is not searched again at each capture
    share_one_worker()  # a worker takes seconds to start
    row = Row(case=case, versions=f"torch {torch.__version__}, diffusers {diffusers.__version__}")
    file, _, name = case.partition("::")
    try:
        test = getattr(coverage_cases.import_tests(checkout, file), name)
        kind = coverage_cases.pipeline_of(test)
        assert kind is not None, f"{name} builds no pipeline"
        row.pipeline = coverage_cases.name_of(kind)
        yield row
        of = plain(Made(test))
        if not all(np.isfinite(a).all() for a in of.result) or not of.result:
            raise ValueError("without us, it gives nothing that is a finite number")
    except Exception as e:
        row.not_built = f"{type(e).__name__}: {e}".strip().splitlines()[0][:200]
        yield row
        return
    row.patterns = of.patterns
    yield row
    for mode in modes:
        begin = time.monotonic()
        result = CHECKS[mode](of)
        seconds = round(time.monotonic() - begin, 1)
        row.results[mode] = result.model_copy(update={"seconds": seconds})
        yield row
