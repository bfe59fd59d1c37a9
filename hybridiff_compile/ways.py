"""The ways in which a denoiser call can be answered, and why a denoiser bears only the plainest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from hybridiff_compile.capture.call import DenoiserCall, Rows
from hybridiff_compile.capture.state import left_behind
from hybridiff_compile.entry import Entry
from hybridiff_compile.ir import BRANCHES


@dataclass(frozen=True)
class AsItIs:
    """One rank runs the call as the pipeline made it, and nothing is known of it.

    Attributes:
        reason: why, as a user is told.
    """

    reason: str


@dataclass(frozen=True)
class OneDevice:
    """This device computes the prediction of all rows.

    Attributes:
        rows: where they are: each half of them in a call of its own. Empty: all in one call.
    """

    rows: Rows


#: With an entry, the ranks compute it.
Way = Entry | OneDevice | AsItIs


def uneven(call: DenoiserCall) -> str:
    """Why the rows of a call cannot be halved; "" if they can."""
    if call.rows and call.rows % len(BRANCHES) == 0:
        return ""
    if call.rows == 1:
        return (
            "its batch is 1, and ranks share the rows of a batch. Where the pipeline guides by two "
            "calls a step, or does not guide at all, make several pictures at once "
            "(num_images_per_prompt=2, or two prompts)"
        )
    return f"its batch of {call.rows} has no two equal halves; make an even number of pictures"


def look(denoiser: nn.Module, call: DenoiserCall, batched: Callable[[], Any]) -> tuple[Any, str]:
    """Run a call as the pipeline made it, and see whether the denoiser depends on earlier calls.

    Args:
        denoiser: with its own forward in place.
        call: that is run.
        batched: runs it.

    Returns:
        The answer; and why no program can take the denoiser's place, or "".
    """

    def again() -> None:
        positional, keyword = _of_another_picture(call).arguments
        denoiser(*positional.values(), **keyword)

    with torch.no_grad():
        answer, changing = left_behind(denoiser, batched, again)
    if not changing:
        return answer, ""
    return answer, (
        f"{type(denoiser).__name__} keeps something from call to call ({changing[0]}), as caches "
        "of features do, and a program of one call would freeze it. Switch that off (for a cache "
        'of diffusers: disable_cache()) and take mode="hybrid", which skips what it has measured'
    )


def _of_another_picture(call: DenoiserCall) -> DenoiserCall:
    noisy = next(iter(call.tensors()))
    leaves = (0.5 - x if n == noisy else x for n, x in zip(call.names, call.leaves, strict=True))
    return replace(call, leaves=tuple(leaves))
