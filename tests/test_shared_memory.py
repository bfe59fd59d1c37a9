"""Weights that share memory in a denoiser share it on every rank, and after `restore`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import hybridiff_compile
from tests.reference import one_thread
from tests.test_forms_of_calls import Answer, Guides, Holds


class Aliases(Holds):
    """Has two parameters over one memory, a view of a third, and a table that is neither."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.big = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 9)
        with torch.no_grad():
            for i, part in enumerate((self.one, self.big)):
                part.weight.copy_(torch.arange(float(part.weight.numel())).view(-1, 6).sin() + i)
                part.bias.zero_()
        self.two.weight = nn.Parameter(self.one.weight.data)
        self.two.bias = nn.Parameter(self.one.bias.data)
        self.column = self.big.weight.data[2:8, ::2]
        self.table = torch.arange(6.0).cos()

    def forward(self, x: torch.Tensor, timestep: Any, text: torch.Tensor) -> Answer:
        text = self.two(self.one(text)) * self.table + text[..., :3] @ self.column.t()
        return self.unet(x, timestep, text, return_dict=False)


@pytest.mark.parametrize(
    "write",
    [
        lambda it: it.one.weight.mul_(3.0),
        lambda it: it.two.weight.mul_(3.0),
        lambda it: it.big.weight.mul_(3.0),
        lambda it: it.column.mul_(3.0),
        lambda it: it.table.mul_(3.0),
        lambda it: it.table.data.mul_(3.0),
        lambda it: it.load_state_dict({n: 3 * w for n, w in it.state_dict().items()}),
    ],
)
@torch.no_grad()
def test_a_write_reaches_all_that_share_the_memory(write: Callable[[Any], object]) -> None:
    pipe, own = Guides(Aliases), Guides(Aliases)
    with one_thread():
        before = own()
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        assert torch.equal(model(), before)
        for one in (pipe, own):
            write(one.transformer)
        with one_thread():
            expected = own()
        assert not torch.equal(expected, before)
        assert torch.equal(model(), expected)
        assert model.report.ranks == 2
    write(pipe.transformer)
    write(own.transformer)
    with one_thread():
        assert torch.equal(pipe(), own())
