"""One pipeline in each mode of `optimize`, compared with itself as it is."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import coverage_cases
import diffusers
import numpy as np
import torch
from coverage_cases import Made
from coverage_compare import STEPS, Plain, Tried, attempt, difference, plain, shaken
from coverage_rows import Result, Row
from suite_plugin import share_one_worker

_TOLERANCE = 1e-3  # of halves against their batch, relative: roundings, a few steps on
_AMPLIFIED = 10  # times what roundings alone change in the result
_SAID_BEFORE = ("one rank runs this denoiser call: ", "one rank runs this pipeline: ")


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
        wrong += far_from_plain(batched, of)
        if (after := difference(of.made.call(STEPS), of.result)) > 0:
            wrong.append(f"off by {after:.1e} once it is restored")
    if tried.ranks < 2 and not tried.said:
        wrong.append("one rank, and no reason is given")
    return finish(
        tried, wrong, off_batched=batched if math.isfinite(batched) else None, same_as=same_as
    )


def hybrid(of: Plain) -> Result:
    """Extrapolation is forced; its pictures must be finite and have the right shape."""
    tried = attempt(of.made, of.long, gpus=2, mode="hybrid", tolerance=10.0, m=2)
    wrong = ill(tried, of)
    if not wrong and tried.ranks > 1 and not tried.phases.get("forecast") and not tried.said:
        wrong.append("no step was extrapolated, and no reason is given")
    return finish(tried, wrong)


def paper(of: Plain) -> Result:
    """Two steps are pipelined, or a sentence says why not."""
    tried = attempt(of.made, of.long, gpus=2, mode="paper", tau1=2, k=2)
    wrong = ill(tried, of)
    if not wrong and not tried.refused and not tried.phases.get("pipelined") and not tried.said:
        wrong.append("no step was pipelined, and no reason is given")
    return finish(tried, wrong)


def regional(of: Plain) -> Result:
    """Compiled blocks must come close to the plain pipeline."""
    tried = attempt(of.made, STEPS, mode="exact", backend="inductor", scope="regional")
    if tried.refused or tried.error:
        return finish(tried, [])
    off = difference(tried.result, of.result)
    wrong = far_from_plain(off, of) if of.is_steady else []
    return finish(tried, wrong, off_batched=off if math.isfinite(off) else None)


def far_from_plain(off: float, of: Plain) -> list[str]:
    """What is wrong with pictures that are so far off the plain ones, relative to the largest."""
    if off > _TOLERANCE and off > _AMPLIFIED * shaken(of):
        return [f"off by {off:.1e} from the plain pipeline"]
    return []


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
