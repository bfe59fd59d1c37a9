"""About how long a command will take: a step is measured here, the rest is a rule for this machine.

The rules are what the commands took on two CPU cores (docs/benchmarks.md, docs/planning.md), as so
many steps of one device and so many seconds for what a faster denoiser does not shorten.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import median
from typing import Any

from hybridiff_compile.bench.figures import Variant
from hybridiff_compile.bench.measure import Contender, make, one_thread
from hybridiff_compile.bench.ready import PROMPT

#: Seconds of a picture, in those of one device's batched call, eager.
_PICTURE: dict[str, float] = {"one-device-apart": 1.6, "hybrid": 0.6}
#: Seconds to start a process with its libraries, and to make a pipeline ready on two ranks.
_PROCESS, _RANKS = 9.0, 8.0
#: Compiling: seconds, and steps of one device; the share of it for repeated blocks, and warm.
_COMPILE, _COMPILE_STEPS, _REGIONAL, _WARM = 20.0, 200.0, 0.4, 0.15


def step_seconds(pipe: Any, call: Mapping[str, Any]) -> float:
    """Median seconds of a step of one device here, by a short picture; keywords as of its call."""
    with one_thread():
        contender = Contender("one-device", "", pipe)
        made = make(contender, PROMPT, 0, **{**call, "num_inference_steps": 5})
    return median(made.step_seconds)


def pictures(step: float, modes: Collection[str], steps: int) -> float:
    """Seconds of pictures in one process, ranks made ready included.

    Args:
        step: seconds of one of one device.
        modes: that take turns.
        steps: that each of them makes, over all of its pictures.
    """
    made = sum(_PICTURE.get(mode, 1.0) for mode in modes) * steps * step
    return made + _RANKS * sum(mode != "one-device" for mode in modes)


def rows(step: float, of: Sequence[Variant], steps: int, again: bool = False) -> float:
    """Seconds of rows in processes of their own.

    Args:
        step, steps: as of `pictures`.
        of: the rows.
        again: whether those that are compiled are made ready once more, with a warm cache or from
            a package.
    """
    found = pictures(step, [mode for mode, *_ in of], steps) + _PROCESS * len(of)
    for mode, backend, scope in of:
        if backend != "eager":
            found += (_REGIONAL if scope == "regional" else 1.0) * _compile(step)
            found += (pictures(step, [mode], 0) + _PROCESS + _WARM * _compile(step)) * again
    return found


def _compile(step: float) -> float:
    """Seconds of compiling all of it."""
    return _COMPILE + _COMPILE_STEPS * step
