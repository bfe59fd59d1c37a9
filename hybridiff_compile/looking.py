"""What can be said of a denoiser call before it is captured: can ranks share it, may they?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from hybridiff_compile.capture.branches import Branches
from hybridiff_compile.capture.call import DenoiserCall, Signature
from hybridiff_compile.capture.differing import of_another_picture
from hybridiff_compile.capture.fingerprint import Watch
from hybridiff_compile.capture.listed import pictures
from hybridiff_compile.capture.state import kept, left_behind
from hybridiff_compile.errors import ConfigError
from hybridiff_compile.layout import writes
from hybridiff_compile.lower.device import device_of
from hybridiff_compile.randomness import random_numbers_kept

#: Calls of one signature that may each make a table for later ones, by the values that they have.
MAKE_TABLES = 8


class Looks:
    """Whether a denoiser keeps something from call to call, as was seen of each kind of call."""

    def __init__(self, trying: Callable[[], AbstractContextManager[nn.Module]]) -> None:
        """Know nothing yet; within `trying` the denoiser may be run, with its own forward."""
        self._trying = trying
        self._reasons: dict[Signature, str] = {}  # why a program cannot take a call's place, or ""
        self._made_tables: Counter[Signature] = Counter()

    def known(self, call: DenoiserCall) -> str | None:
        """Why a program cannot take a call's place, or ""; None if that is not known."""
        return self._reasons.get(call.signature())

    def note(self, step: Branches, reason: str) -> None:
        """Know it of a step's calls."""
        self._reasons |= {call.signature(): reason for call in step.calls}

    def answer(self, call: DenoiserCall, batched: Callable[[], Any]) -> Any:
        """Find it out at a call that the pipeline made; returns the call's answer."""
        with self._trying() as denoiser:
            answer, reason = look(denoiser, call, batched, device_of(denoiser))
        self._reasons[call.signature()] = reason
        return answer

    def reason(self, call: DenoiserCall) -> str:
        """The same as `known`, found out by a trial if need be."""
        if call.signature() not in self._reasons:
            with self._trying() as denoiser, kept(denoiser):
                device = device_of(denoiser)
                with random_numbers_kept(device):
                    _, reason = look(denoiser, call, lambda: call.given_to(denoiser), device)
            self._reasons[call.signature()] = reason
        return self._reasons[call.signature()]

    def of_changes(self, step: Branches, before: Watch, now: Watch) -> str:
        """Why no program can take the place of calls that changed the denoiser.

        Returns:
            The reason; "" if what they changed is tables for later calls.
        """
        place = step.signature()
        self._made_tables[place] += 1
        is_written = before.was_written()
        # One that is made anew at each call, of the same form, is looked at once.
        if not is_written and now.form == before.form and self._made_tables[place] > 1:
            return ""
        if is_written or self._made_tables[place] > MAKE_TABLES:
            return "it leaves another thing behind in it at each call"
        for call in step.calls:
            self._reasons.pop(call.signature(), None)
        return next(filter(None, map(self.reason, step.calls)), "")


def uneven(call: DenoiserCall) -> str:
    """Why the rows of a call cannot be halved; "" if they can."""
    if call.parts > 1:
        return ""
    alone = len(pictures(call)) == 1
    if call.is_listed and not alone:
        return "its pictures are lists in a list, which ranks do not share"
    if call.rows == 1 or alone:
        return (
            "it is called once a step with a batch of 1, so there is nothing to split (the model "
            "does not guide, or its guidance is an input). mode='hybrid' still skips steps. "
            "Several pictures at once (num_images_per_prompt=2) are shared"
        )
    return "its first argument is no batch of pictures"


def look(
    denoiser: nn.Module, call: DenoiserCall, batched: Callable[[], Any], device: torch.device
) -> tuple[Any, str]:
    """Run a call as the pipeline made it, and see whether the denoiser depends on earlier calls.

    Args:
        denoiser: with its own forward in place.
        call: that is run.
        batched: runs it.
        device: of the denoiser.

    Returns:
        The answer; and why no program can take the denoiser's place, or "".
    """

    def again() -> None:
        other = of_another_picture(call)
        with random_numbers_kept(device):
            other.given_to(denoiser)

    counts = {name: writes(tensor) for name, tensor in call.tensors().items()}
    with torch.no_grad():
        answer, changing = left_behind(denoiser, batched, again)
    written = [name for name, tensor in call.tensors().items() if writes(tensor) != counts[name]]
    if written:
        return answer, (
            f"{type(denoiser).__name__} writes into its argument {written[0]} when it is called, "
            "which a program of one call cannot follow"
        )
    if not changing:
        return answer, ""
    return answer, (
        f"{type(denoiser).__name__} keeps something from call to call ({changing[0]}), as caches "
        "of features do, and a program of one call would freeze it. Switch that off (for a cache "
        'of diffusers: disable_cache()) and take mode="hybrid", which skips what it has measured'
    )


def check_doubled(pipe: Any, call: DenoiserCall) -> None:
    """AsyncDiff pipelines a batch from call to call: each has to be of the same branches.

    Raises:
        ConfigError: the pipeline guides, and not by one batch.
    """
    if getattr(pipe, "do_classifier_free_guidance", True) and not call.is_doubled():
        shape = next((tuple(t.shape) for t in call.tensors().values()), None)
        raise ConfigError(
            "mode='asyncdiff' runs both branches in one batch, and this pipeline's call of shape "
            f"{shape} is no [uncond, cond] batch; use mode='exact' for it."
        )
