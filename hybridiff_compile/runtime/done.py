"""The steps of a call that were run, while their numbers are still on their way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hybridiff_compile.ir import Phase
from hybridiff_compile.runtime.estimate import Reading
from hybridiff_compile.runtime.report import StepRecord
from hybridiff_compile.runtime.switching import counted


@dataclass
class Done:
    """A guided step that was run.

    Attributes:
        index: of the run's steps, guided or not.
        phase: that it ran in, and why.
        seconds: on the driver's clock.
        discrepancy: M_i of Eq. (1), still on its device; None if it was not computed serially.
        error: weighted error that was measured in it, once the scheduler was given its outcome.
    """

    index: int
    phase: Phase
    reason: str
    seconds: float
    discrepancy: torch.Tensor | None = None
    error: Reading | None = None


def last_kind(done: Sequence[Done], index: int) -> str:
    """What the step before an index ran as: a phase's kind, or "as it is" if it is not among them.

    Args:
        done: the steps whose rows were shared or looked at.
        index: of the next step, among all of the run's.
    """
    return done[-1].phase.kind if done and done[-1].index == index - 1 else "as it is"


def records(done: Sequence[Done]) -> tuple[StepRecord, ...]:
    """What a report says of each step; waits for the device."""
    kinds = counted([step.phase for step in done])
    return tuple(
        StepRecord(
            index=d.index,
            phase=d.phase,
            counted=kind,
            reason=d.reason,
            seconds=d.seconds,
            discrepancy=None if d.discrepancy is None else float(d.discrepancy),
            error=None if d.error is None else float(d.error),
        )
        for d, kind in zip(done, kinds, strict=True)
    )
