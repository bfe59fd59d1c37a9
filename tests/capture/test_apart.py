"""Halves that add up to their batch, and halves that only round to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hybridiff_compile.capture.apart import check_meaning
from hybridiff_compile.capture.call import DenoiserCall
from hybridiff_compile.capture.trace import capture
from hybridiff_compile.capture.widened import Widened
from hybridiff_compile.errors import CaptureError

HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


class Deep(nn.Module):
    """Many layers, so that much is rounded; `mixed` of the other rows flows into each."""

    def __init__(self, mixed: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(12))
        self.mixed = mixed

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            sample = sample + torch.nn.functional.silu(layer(sample.to(layer.weight.dtype)))
            sample = torch.addcmul(sample, sample.flip(0), sample.new_full((), self.mixed))
        return sample + self.mixed * sample.flip(0)


def made(dtype: torch.dtype, mixed: float) -> tuple[nn.Module, DenoiserCall, torch.Tensor]:
    torch.manual_seed(0)
    denoiser = Deep(mixed).to(dtype).eval()
    call = DenoiserCall.of(("sample",), (torch.randn(4, 5, 16, dtype=dtype),), {})
    with torch.no_grad():
        return denoiser, call, denoiser(*call.leaves)


@HALF
def test_rows_that_depend_on_each_other_by_less_than_rounding_are_refused(dtype: Any) -> None:
    denoiser, call, answer = made(dtype, 2e-3)
    with pytest.raises(CaptureError, match="its rows depend on each other"):
        capture(denoiser, call, answer)


@HALF
def test_rows_of_their_own_are_taken(dtype: Any) -> None:
    denoiser, call, answer = made(dtype, 0.0)
    assert capture(denoiser, call, answer).rows == {"sample": 0}


@HALF
def test_widened_computes_in_float32_and_leaves_the_weights(dtype: Any) -> None:
    denoiser, call, answer = made(dtype, 0.1)
    before = {name: p.clone() for name, p in denoiser.named_parameters()}
    with torch.no_grad(), Widened():
        wide = denoiser(*call.leaves)
    expected = denoiser.float()(call.leaves[0].float())
    assert wide.dtype == torch.float32
    assert answer.dtype == dtype
    assert (wide - expected).abs().max() < 1e-5 * expected.abs().max()
    for name, parameter in denoiser.to(dtype).named_parameters():
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize(
    "write", [lambda x: x.mul_(2), lambda x: x.__setitem__(0, 1), lambda x: torch.neg(x, out=x)]
)
def test_a_write_into_half_precision_is_not_lost_but_refused(write: Any) -> None:
    held = torch.ones(3, dtype=torch.bfloat16)
    with pytest.raises(NotImplementedError, match="writes into what is not"), Widened():
        write(held)


def test_what_cannot_be_widened_is_taken_as_it_is() -> None:
    class Writes(Deep):
        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            next(self.parameters()).data.mul_(1)
            return super().forward(sample)

    _, call, answer = made(torch.bfloat16, 2e-3)
    denoiser = Writes(2e-3).to(torch.bfloat16).eval()
    check_meaning(denoiser, lambda: answer, lambda: denoiser(call.leaves[0]), answer, 0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_rows_that_depend_on_each_other_by_little_are_refused(dtype: Any) -> None:
    denoiser, call, answer = made(dtype, 1e-5)
    with pytest.raises(CaptureError, match="its rows depend on each other"):
        capture(denoiser, call, answer)


def test_what_rounds_much_in_float32_is_taken_if_it_is_the_same_in_float64() -> None:
    denoiser, call, answer = made(torch.float32, 0.0)

    def whole() -> torch.Tensor:
        return denoiser(*call.leaves)

    check_meaning(denoiser, whole, whole, answer, 1e-4)
    with pytest.raises(CaptureError, match=r"in float64.*rows depend on each other"):
        check_meaning(denoiser, whole, lambda: whole() * (1 + 1e-5), answer, 1e-4)
