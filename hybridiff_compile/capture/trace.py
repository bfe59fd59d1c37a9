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
from hybridiff_compile.capture.differing import same
from hybridiff_compile.capture.exporting import export, quietly
from hybridiff_compile.capture.leaf import leaf_graphs
from hybridiff_compile.capture.prediction import Form
from hybridiff_compile.capture.rows import FACTOR, rows_of, ways_to_halve
from hybridiff_compile.capture.state import kept
from hybridiff_compile.capture.step import step_program
from hybridiff_compile.capture.take_rows import TakeError, take_rows
from hybridiff_compile.errors import CaptureError, ExportError
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
        is_taken: each part has a graph of its own, taken out of that of the whole batch.
        not_exported: why the denoiser is a leaf of the program's graph; "" if it is not.
    """

    program: StepProgram
    rows: Rows
    form: Form
    is_taken: bool = False
    not_exported: str = ""

    def compute(self, call: DenoiserCall) -> torch.Tensor:
        """The prediction of a call's batch, part by part, as the captured step makes it."""
        values = Branches.of_batch(call, self.rows).inputs()
        (step,), (contract,) = self.program.graphs, self.program.contracts
        return step(*(values[n] for n in contract.inputs))["prediction"]


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
    try:
        return first_that_holds(attempt, ways_to_halve(denoiser, call, answer))
    except CaptureError as e:
        refused = e
    try:
        return capture_taken(denoiser, call, answer, refused)
    except CaptureError:
        if not isinstance(refused, ExportError):
            raise
    return _capture_leaf(denoiser, call, answer, str(refused))


def _capture_leaf(denoiser: nn.Module, call: DenoiserCall, answer: Any, why: str) -> Captured:
    """Take a denoiser that cannot be exported as it is, and parts of its batch for its calls.

    Raises:
        CaptureError: the parts do not add up to the batch, or it draws random numbers.
    """
    rows = rows_of_halves(denoiser, call, answer)
    of = Branches.of_batch(call, rows)
    with kept(denoiser), torch.no_grad():
        answers = [part.given_to(denoiser) for part in of.calls]
    program = step_program(leaf_graphs(denoiser, of.calls, answers), of.names, of.inputs_of)
    form = Form.of(answer, type(denoiser).__name__)
    return Captured(program, rows, form, not_exported=why)


def capture_taken(
    denoiser: nn.Module, call: DenoiserCall, answer: Any, refused: CaptureError
) -> Captured:
    """Trace a denoiser's batched call, and take each part out of its graph; see `take_rows`.

    That is for one that cannot compute a part by itself, as it cuts its batch by what rows mean.

    Args:
        denoiser: the module, with its own forward in place; it is left as it was.
        call: of a batch of several parts.
        answer: what the denoiser returned to it.
        refused: why it cannot compute the parts.

    Raises:
        CaptureError: `refused`, if this fails as well.
    """
    name = type(denoiser).__name__
    form, (rows, _) = Form.of(answer, name), rows_of(denoiser, call, answer)
    try:
        with kept(denoiser), quietly():
            batched, _ = export(denoiser, call)
            wide, _ = export(denoiser, call.repeated(FACTOR, rows))
        of = Branches.of_batch(call, rows)
        wanted = torch.arange(call.rows).chunk(len(of.calls))
        with halving(name, "a part of its batch's graph"):
            parts = [take_rows(batched, wide, FACTOR, part.tolist()) for part in wanted]
        program = step_program(parts, of.names, of.inputs_of)
        captured = Captured(program, rows, form, is_taken=True)
        _compare(captured, denoiser, call, form.pack(answer))
    except TakeError as e:
        raise CaptureError(f"{refused}; {e}") from e
    except CaptureError as e:
        logger.debug("its parts cannot be taken out of its batch's graph: %s", e)
        raise refused from e
    return captured


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
    try:
        traced = _exported(denoiser, step.calls)
    except ExportError as e:
        traced = leaf_graphs(denoiser, step.calls, answers)
        program = step_program(traced, step.names, step.inputs_of)
        return Captured(program, {}, form, not_exported=str(e))
    values = step.inputs()
    with torch.no_grad(), halving(name, "the calls of a step"):
        captured = Captured(step_program(traced, step.names, step.inputs_of), {}, form)
        (graph,), (contract,) = captured.program.graphs, captured.program.contracts
        result = graph(*(values[n] for n in contract.inputs))["prediction"]
    expected = torch.cat([form.pack(answer) for answer in answers])
    check_same(result, expected, name, together=True)
    if not same(result, expected).all():
        logger.warning(
            "the exported %s rounds otherwise than the denoiser itself, by up to %.0e: it has a "
            "path that is no part of an export, as torch's own fused modules do",
            name,
            (result - expected).abs().nan_to_num().max().item(),
        )
    return captured


def _exported(denoiser: nn.Module, calls: Sequence[DenoiserCall]) -> list[fx.GraphModule]:
    """The graph of each call; alike calls have the same one."""
    made = dict[Signature, fx.GraphModule]()
    with kept(denoiser), quietly():
        for call in calls:
            if call.signature() not in made:
                made[call.signature()], _ = export(denoiser, call)
    return [made[call.signature()] for call in calls]


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

    return first_that_holds(attempt, ways_to_halve(denoiser, call, answer, by_values=True))


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
        raise type(refused[0])(f"{refused[0]}; {unknown}") from refused[0]
    raise refused[0]


def _compare(
    captured: Captured, denoiser: nn.Module, call: DenoiserCall, expected: torch.Tensor
) -> None:
    """Refuse a captured step that, of the call's own values, makes another prediction."""
    if captured.rows:
        check_halves(denoiser, call, captured.rows, expected, captured.compute)
        return
    name = type(denoiser).__name__
    with torch.no_grad(), halving(name):
        result = captured.compute(call)
    check_same(result, expected, name, together=True)
