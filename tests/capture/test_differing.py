"""Rows that depend on each other are seen in a call whose halves are equal, too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hybridiff_compile.capture import apart, trace
from hybridiff_compile.capture.call import DenoiserCall
from hybridiff_compile.capture.differing import with_other_half
from hybridiff_compile.errors import CaptureError
from tests.capture.test_apart import Deep

ROWS = {"sample": 0, "text": 0}


class Of(nn.Module):
    """What is made of a picture and a text."""

    def __init__(self, made: Any) -> None:
        super().__init__()
        self.made = made

    def forward(self, sample: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.made(sample, text)


def doubled(**halves: torch.Tensor) -> DenoiserCall:
    values = tuple(torch.cat([half, half]) for half in halves.values())
    return DenoiserCall.of(tuple(halves), values, {})


def rows_by(way: str, denoiser: nn.Module, call: DenoiserCall) -> dict[str, int]:
    """Where the two ways of computing halves apart find the rows."""
    with torch.no_grad():
        answer = denoiser(*call.leaves)
    if way == "programs":
        return dict(trace.capture(denoiser, call, answer).rows)
    return dict(trace.rows_of_halves(denoiser, call, answer))


WAYS = pytest.mark.parametrize("way", ["programs", "one device"])


@WAYS
@pytest.mark.parametrize("value", [0.0, 1.0, torch.nan], ids=str)
@pytest.mark.parametrize("factor", [1, 2], ids=["no guidance", "guided"])
def test_pictures_that_are_mixed_are_refused(way: str, value: float, factor: int) -> None:
    text = torch.randn(2, 4).index_fill(1, torch.tensor(0), value)
    picture = torch.randn(2, 4)
    call = DenoiserCall.of(
        tuple(ROWS), (torch.cat([picture, picture]), torch.cat([text, factor * text])), {}
    )
    with pytest.raises(CaptureError, match="its rows depend on each other"):
        rows_by(way, Of(lambda sample, text: sample - sample.mean(0) + text), call)


@WAYS
def test_texts_that_are_mixed_are_given_to_both_halves_whole(way: str) -> None:
    call = doubled(sample=torch.randn(1, 4), text=torch.randn(1, 4))
    assert rows_by(way, Of(lambda sample, text: sample + text.mean(0)), call) == {"sample": 0}


@WAYS
def test_rows_of_their_own_are_taken(way: str) -> None:
    call = doubled(sample=torch.randn(1, 4), text=torch.randn(1, 4))
    assert rows_by(way, Of(lambda sample, text: sample * text), call) == ROWS


@WAYS
def test_rows_mixed_by_less_than_half_precision_rounds_are_refused(way: str) -> None:
    torch.manual_seed(0)
    denoiser = Deep(2e-3).bfloat16().eval()
    call = doubled(sample=torch.randn(1, 5, 16, dtype=torch.bfloat16))
    with pytest.raises(CaptureError, match="its rows depend on each other"):
        rows_by(way, denoiser, call)


@WAYS
def test_what_is_looked_up_in_a_table_stays(way: str) -> None:
    table = torch.randn(3, 4)
    call = doubled(sample=torch.randn(1, 4), text=torch.tensor([2.0]))
    assert rows_by(way, Of(lambda sample, text: sample + table[text.long()]), call) == ROWS


@WAYS
@pytest.mark.parametrize("factor", [1, 2])
def test_only_where_halves_are_equal_another_batch_is_computed(
    way: str, factor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    others, own = [], apart._batched
    monkeypatch.setattr(apart, "_batched", lambda *of: others.append(of) or own(*of))
    values = (torch.cat([t, factor * t]) for t in torch.randn(2, 1, 4))
    call = DenoiserCall.of(tuple(ROWS), tuple(values), {})
    rows_by(way, Of(lambda sample, text: sample + text), call)
    assert len(others) == (factor == 1)


def test_the_other_half_is_of_the_same_kind() -> None:
    mask = torch.tensor([[0.0, -torch.inf]])
    halves = {
        "tokens": torch.tensor([[1, 2, 3]]),
        "text": torch.zeros(1, 3, 2).mT,
        "time": torch.tensor([7.0]),
        "mask": mask,
        "table": torch.tensor([[4, 5]]),
    }
    call = doubled(**halves)
    rows = {name: 0 for name in halves}
    other = with_other_half(call, rows)
    assert other is not None
    assert other.signature() == call.signature()
    first, second = other.branch(0, rows).tensors(), other.branch(1, rows).tensors()
    assert all(torch.equal(first[name], halves[name]) for name in halves)
    assert second["tokens"].tolist() == [[3, 2, 1]]
    assert second["text"].unique().tolist() == [0.5]
    assert second["mask"].tolist() == [[0.5, -torch.inf]]
    assert torch.equal(second["time"], halves["time"])
    assert torch.equal(second["table"], halves["table"])


def test_halves_that_differ_stay() -> None:
    values = torch.randn(2, 4), torch.ones(2, 4)
    other = with_other_half(DenoiserCall.of(tuple(ROWS), values, {}), ROWS)
    assert other is not None
    assert torch.equal(other.tensors()["sample"], values[0])
    assert other.tensors()["text"].tolist() == [[1.0] * 4, [-0.5] * 4]
    assert with_other_half(other, ROWS) is None
