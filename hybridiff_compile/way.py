"""The ways in which a denoiser call can be answered."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hybridiff_compile.capture.apart import run_apart
from hybridiff_compile.capture.branches import Branches
from hybridiff_compile.capture.call import Rows
from hybridiff_compile.capture.prediction import Form
from hybridiff_compile.capture.trace import Captured
from hybridiff_compile.entry import Entry


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
        rows: where they are: each part of them in a call of its own. Empty: calls as they are.
        taken: computes the parts, where the denoiser itself cannot.
    """

    rows: Rows
    taken: Captured | None = None

    def compute(
        self, denoiser: nn.Module, step: Branches, forward: Callable[..., Any]
    ) -> tuple[torch.Tensor, Form, list[int]]:
        """The prediction of a step, the form of the denoiser's answers, and the rows of each."""
        name = type(denoiser).__name__
        if self.taken is not None:
            prediction = self.taken.compute(*step.calls)
            return prediction, self.taken.form, [len(prediction)]
        if not self.rows:
            return run_apart(name, step, forward)
        (call,) = step.calls
        prediction, form, rows = run_apart(name, Branches.of_batch(call, self.rows), forward)
        return prediction, form, [sum(rows)]


#: With an entry, the ranks compute it.
Way = Entry | OneDevice | AsItIs


class Asked(enum.Enum):
    """What a session wants of a call: of all ranks, of this device half by half, or as a whole."""

    RANKS = enum.auto()
    HALVES = enum.auto()
    WHOLE = enum.auto()
