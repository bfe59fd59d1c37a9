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


def rows(step: float, of: Sequence[Variant], steps: int) -> float:
    """Seconds of rows in processes of their own; arguments as for `pictures`."""
    compiled = [_compile(step, mode != "one-device") for mode, how, _ in of if how != "eager"]
    return pictures(step, [mode for mode, *_ in of], steps) + _PROCESS * len(of) + sum(compiled)


def compiling(step: float, of: Sequence[Variant]) -> float:
    """Seconds until rows were compiled, cold and warm, or exported and loaded."""
    found = 0.0
    for mode, backend, scope in of:
        ready = _PROCESS + _RANKS * (mode != "one-device")
        found += ready
        if backend != "eager":
            found += _compile(step, scope == "regional") + ready + _WARM * _compile(step)
    return found


def _compile(step: float, repeated: bool = False) -> float:
    """Seconds of compiling: all of it, or each repeated block once."""
    return (_COMPILE + _COMPILE_STEPS * step) * (_REGIONAL if repeated else 1.0)
