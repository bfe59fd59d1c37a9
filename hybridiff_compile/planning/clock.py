"""How long calls take on their device, taken in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

WARM_UP = 3


def samples(
    runs: Sequence[Callable[[], Any]],
    device: torch.device,
    rounds: int,
    warm_up: int = WARM_UP,
) -> list[list[float]]:
    """Seconds of each call in each round, after `warm_up` calls of each.

    Calls take turns, so that a machine which slows down slows all of them alike. On a GPU a call
    is clocked between events, without waiting in between: where launching kernels takes longer than
    running them, this is the time of launching them, as in a pipeline.
    """
    for run in runs:
        for _ in range(warm_up):
            run()
    taken: list[list[tuple[Any, Any]]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, marks in zip(runs, taken, strict=True):
            begin = _mark(device)
            run()
            marks.append((begin, _mark(device)))
    synchronize(device)
    return [[_between(*pair) for pair in marks] for marks in taken]


def synchronize(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    mark = torch.cuda.Event(enable_timing=True)
    mark.record()
    return mark


def _between(begin: Any, end: Any) -> float:
    if isinstance(begin, float):
        return end - begin
    return 1e-3 * begin.elapsed_time(end)
