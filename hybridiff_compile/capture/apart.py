"""The halves of a batch, computed apart, and whether they add up to the batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from hybridiff_compile.capture.branches import Branches
from hybridiff_compile.capture.call import DenoiserCall, Rows
from hybridiff_compile.capture.differing import same, with_other_half
from hybridiff_compile.capture.listed import merged
from hybridiff_compile.capture.prediction import Form
from hybridiff_compile.capture.state import kept
from hybridiff_compile.capture.widened import HALF, Widened
from hybridiff_compile.errors import CaptureError

logger = logging.getLogger(__name__)

# How far the branches, put together, may be from the batched call: kernels differ between batch
# sizes, so this bounds rounding, not meaning. Relative to the largest value.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# What is beyond _ROUNDING in float32 is looked at in float64, where roundings are under _WIDE.
_ROUNDING, _WIDE = 1e-5, 1e-6


@contextmanager
def halving(name: str, what: str = "a part of its batch") -> Iterator[None]:
    """Within this, what a denoiser raises of a half of its batch, say, is a CaptureError."""
    try:
        yield
    except CaptureError:
        raise
    except Exception as e:  # whatever it says of values, or of shapes, that do not go together
        raise CaptureError(f"{name} cannot compute {what}: {type(e).__name__}: {e}") from e


def run_apart(
    name: str, step: Branches, forward: Callable[..., Any]
) -> tuple[torch.Tensor, Form, list[int]]:
    """Run the branches of a step one after the other, by the denoiser itself.

    Args:
        name: of the denoiser.
        step: its calls, or the parts of a call's batch.
        forward: the denoiser's own.

    Returns:
        The prediction of all rows, [rows, ...], the form of the answers, and the rows of each.
    """
    outputs = [call.given_to(forward) for call in step.calls]
    form = Form.of(outputs[0], name)
    packed = [form.pack(output) for output in outputs]
    return torch.cat(packed), form, [one.shape[0] for one in packed]


def check_listed(denoiser: nn.Module, call: DenoiserCall, step: Branches, answer: Any) -> None:
    """Refuse parts of a list of pictures that do not add up to the answer to the whole list.

    Args:
        denoiser: with its own forward in place.
        call: of the list.
        step: its parts.
        answer: what the denoiser returned to it.

    Raises:
        CaptureError: they differ by more than rounding, or cannot be computed.
    """
    name = type(denoiser).__name__

    def tensors(answer: Any) -> list[torch.Tensor]:
        return [x for x in pytree.tree_leaves(answer) if isinstance(x, torch.Tensor)]

    def flat(answer: Any) -> torch.Tensor:
        return torch.cat([x.flatten() for x in tensors(answer)])

    def apart() -> Any:
        return merged([part.given_to(denoiser) for part in step.calls])

    with halving(name, "a part of its pictures"):
        parts = apart()
        if [x.shape for x in tensors(parts)] != [x.shape for x in tensors(answer)]:
            raise CaptureError(
                f"{name} answers a list of pictures by something else than a list of as many"
            )
        expected = flat(answer)
        error = check_same(flat(parts), expected, name)

        def whole() -> torch.Tensor:
            return flat(call.given_to(denoiser))

        check_meaning(denoiser, whole, lambda: flat(apart()), expected, error)


def check_halves(
    denoiser: nn.Module,
    call: DenoiserCall,
    rows: Rows,
    expected: torch.Tensor,
    apart: Callable[[DenoiserCall], torch.Tensor],
) -> None:
    """Refuse halves that do not add up to their batch.

    Where halves of the call are equal, this cannot be seen in it: a call of another second half is
    computed as well, by both.

    Args:
        denoiser: with its own forward in place.
        call: of a batch that can be halved.
        rows: where the rows of each argument are.
        expected: the denoiser's prediction of all rows.
        apart: computes a call's halves apart, and puts their predictions together.

    Raises:
        CaptureError: they differ by more than rounding, or cannot be computed.
    """
    name = type(denoiser).__name__

    def compute(call: DenoiserCall) -> torch.Tensor:
        with torch.no_grad(), halving(name):
            return apart(call)

    error = check_same(compute(call), expected, name)
    if other := with_other_half(call, rows):
        call = other
        with torch.no_grad(), kept(denoiser), halving(name, "a batch of other rows"):
            expected = _batched(denoiser, call)
        error = max(error, check_same(compute(call), expected, name))
    check_meaning(denoiser, lambda: _batched(denoiser, call), lambda: apart(call), expected, error)


def _batched(denoiser: nn.Module, call: DenoiserCall) -> torch.Tensor:
    answer = call.given_to(denoiser)
    return Form.of(answer, type(denoiser).__name__).pack(answer)


def check_meaning(
    denoiser: nn.Module,
    whole: Callable[[], torch.Tensor],
    apart: Callable[[], torch.Tensor],
    expected: torch.Tensor,
    error: float,
) -> None:
    """Refuse parts that are no more than their batch's roundings away from it, but mean another.

    In half precision the two are computed again in float32, and where they are further apart than
    that rounds, in float64; what cannot be is taken as it is.

    Args:
        denoiser: with its own forward in place; it is left as it was.
        whole, apart: compute a prediction as a batch, and part by part.
        expected: that of the batch.
        error: how far they are apart, relative to the largest value.

    Raises:
        CaptureError: in a wider precision they differ by more than its rounding.
    """
    name = type(denoiser).__name__
    wider = [torch.float32] if expected.dtype in HALF else []
    for to in (*wider, torch.float64):
        if to == torch.float64 and (error <= _ROUNDING or expected.dtype == to):
            return
        try:
            with torch.no_grad(), kept(denoiser), Widened(to):
                pair = apart(), whole()
        except Exception as e:  # of kernels that know half precision only, or out of memory
            logger.debug("%s is not compared in %s: %s", name, to, e)
            return
        if to == torch.float32:
            error = check_same(*pair, name)
        elif (wide := _error(*pair)) > _WIDE:
            raise _mismatch(name, f"a relative difference of {wide:.2e} in float64", False)


def check_same(
    result: torch.Tensor, expected: torch.Tensor, name: str, *, together: bool = False
) -> float:
    """Refuse halves that, put together, are not what the denoiser made of the batch.

    Returns their largest difference, relative to the largest value.

    Args:
        result, expected: predictions, [2B, ...]; what is no number in both is the same.
        name: of the denoiser.
        together: the result is of one call, not of two halves.

    Raises:
        CaptureError: they differ by more than rounding.
    """
    if result.shape != expected.shape:
        shapes = f"shapes {tuple(result.shape)} and {tuple(expected.shape)}"
        raise _mismatch(name, shapes, together)
    error = _error(result, expected)
    if not error <= _TOLERANCE.get(expected.dtype, 1e-3):
        raise _mismatch(name, f"a relative difference of {error:.2e}", together)
    return error


def _error(result: torch.Tensor, expected: torch.Tensor) -> float:
    difference = torch.where(same(result, expected), 0.0, (result - expected).abs())
    largest = torch.where(expected.isfinite(), expected, 0.0).abs().max().clamp_min(1e-12)
    return (difference.max() / largest).item()


def _mismatch(name: str, what: str, together: bool) -> CaptureError:
    if together:
        return CaptureError(
            f"the program of {name} gives {what} to the denoiser's own answer: that computes "
            "another thing each time, or in another process, or something that is no number; or "
            "its compiled code is wrong"
        )
    return CaptureError(
        f"the parts of {name}'s batch, computed apart, give {what} to its batched call: its rows "
        "depend on each other, or it rounds coarsely (quantized activations), or it computes "
        "another thing each time"
    )
