"""Export the denoiser once, at the batch of one branch or of both, as one step program."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import fx, nn

from hybridiff_compile.capture.apart import check_halves, check_same, halving, run_apart
from hybridiff_compile.capture.branches import Branches
from hybridiff_compile.capture.call import DenoiserCall, Rows, Signature
from hybridiff_compile.capture.exporting import export, quietly
from hybridiff_compile.capture.prediction import Form
from hybridiff_compile.capture.rows import ways_to_halve
from hybridiff_compile.capture.state import kept
from hybridiff_compile.capture.step import step_program
from hybridiff_compile.errors import CaptureError
from hybridiff_compile.ir import StepProgram

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Captured:
    """A captured step.

    Attributes:
        program: one graph `(sample_u, e_u..., sample_c, e_c...) -> prediction[2B, ...]`; captured
            together, `(sample, e...) -> prediction`, all at the batch 2B.
        rows: where the rows of each argument are, the noisy picture first. Each of these is an
            input for each part, `<name>_u` and `<name>_c`; every other one is one object for all
            rows. Empty where all parts were captured together, or are calls of their own.
        form: of the answer that the pipeline expects.
    """

    program: StepProgram
    rows: Rows
    form: Form


def capture(
    denoiser: nn.Module, call: DenoiserCall, answer: Any, *, together: bool = False
) -> Captured:
    """Trace a denoiser from a pipeline's own call.

    Args:
        denoiser: the module, with its own forward in place; it is left as it was.
        call: of a batch of 2B rows, whatever they mean.
        answer: what the denoiser returned to it, for the comparison with the halves; None compares
            nothing, for weights and values that are FakeTensors or not of interest.
        together: trace one call of both halves, for programs that do not take them apart.

    Raises:
        CaptureError: it cannot be exported, or its halves do not add up to the batched call.
    """
    name = type(denoiser).__name__
    form = None if answer is None else Form.of(answer, name)

    def attempt(rows: Rows) -> Captured:
        with kept(denoiser), quietly():
            traced, returned = export(denoiser, call if together else call.branch(0, rows))
        known = form or Form.of(returned, name)
        captured = Captured(_program(traced, call, rows), rows, known)
        if answer is not None:
            _compare(captured, denoiser, call, known.pack(answer))
        return captured

    if together or answer is None:
        return attempt({} if together else call.rows_by_shape())
    return first_that_holds(attempt, ways_to_halve(denoiser, call, answer))


def capture_step(denoiser: nn.Module, step: Branches, answers: Sequence[Any]) -> Captured:
    """Trace a denoiser from all calls of a step: one graph of them, `(inputs) -> prediction`.

    Args:
        denoiser: the module, with its own forward in place; it is left as it was.
        step: its calls.
        answers: what the denoiser returned to each.

    Raises:
        CaptureError: it cannot be exported, or the graph makes other predictions of the calls.
    """
    name = type(denoiser).__name__
    form, *others = [Form.of(answer, name) for answer in answers]
    if any(other != form for other in others):
        raise CaptureError(f"{name} answers the calls of a step in several forms")
    made = dict[Signature, fx.GraphModule]()
    with kept(denoiser), quietly():
        for call in step.calls:
            if call.signature() not in made:
                made[call.signature()], _ = export(denoiser, call)
    traced = [made[call.signature()] for call in step.calls]
    values = step.inputs()
    with torch.no_grad(), halving(name, "the calls of a step"):
        captured = Captured(step_program(traced, step.names, step.inputs_of), {}, form)
        (graph,), (contract,) = captured.program.graphs, captured.program.contracts
        result = graph(*(values[n] for n in contract.inputs))["prediction"]
    check_same(result, torch.cat([form.pack(answer) for answer in answers]), name, together=True)
    return captured


def _program(traced: fx.GraphModule, call: DenoiserCall, rows: Rows) -> StepProgram:
    """Of an exported denoiser: a call for each part of the batch, or one of all its rows."""
    if not rows:
        return step_program([traced])
    of = Branches.of_batch(call, rows)
    return step_program([traced] * len(of.calls), of.names, of.inputs_of)


def rows_of_halves(denoiser: nn.Module, call: DenoiserCall, answer: Any) -> Rows:
    """Where the rows are, if the halves add up to the batch.

    Args:
        denoiser: with its own forward in place.
        call: of a batch that can be halved.
        answer: what the denoiser returned to it.

    Raises:
        CaptureError: they do not, or cannot be computed apart.
    """
    name = type(denoiser).__name__
    expected = Form.of(answer, name).pack(answer)

    def compute(call: DenoiserCall, rows: Rows) -> torch.Tensor:
        return run_apart(name, Branches.of_batch(call, rows), denoiser)[0]

    def attempt(rows: Rows) -> Rows:
        check_halves(denoiser, call, rows, expected, partial(compute, rows=rows))
        return rows

    return first_that_holds(attempt, ways_to_halve(denoiser, call, answer))


def first_that_holds(attempt: Callable[[Rows], T], ways: Iterable[Rows]) -> T:
    """What the first way to halve a batch gives that does not raise a CaptureError.

    Raises:
        CaptureError: all do; it is that of the first, the likeliest, and says why no other way
            could be looked for.
    """
    refused: list[CaptureError] = []
    try:
        for rows in ways:
            try:
                return attempt(rows)
            except CaptureError as e:
                refused.append(e)
    except CaptureError as unknown:  # raised by the ways
        raise CaptureError(f"{refused[0]}; {unknown}") from refused[0]
    raise refused[0]


def _compare(
    captured: Captured, denoiser: nn.Module, call: DenoiserCall, expected: torch.Tensor
) -> None:
    """Refuse a captured step that, of the call's own values, makes another prediction."""
    (step,), (contract,) = captured.program.graphs, captured.program.contracts

    def compute(call: DenoiserCall) -> torch.Tensor:
        values = Branches.of_batch(call, captured.rows).inputs()
        return step(*(values[n] for n in contract.inputs))["prediction"]

    if captured.rows:
        check_halves(denoiser, call, captured.rows, expected, compute)
        return
    name = type(denoiser).__name__
    with torch.no_grad(), halving(name):
        result = compute(call)
    check_same(result, expected, name, together=True)
