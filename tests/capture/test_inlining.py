"""Regions that torch.export makes graphs of their own from."""

from __future__ import annotations

import torch
from torch import fx, nn

from hybridiff_compile.passes import build_programs
from tests import toy


class Regions(nn.Module):
    """Switches autocast off, gradients on, and one within the other."""

    def __init__(self, is_on: bool = False) -> None:
        super().__init__()
        self.is_on = is_on
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("table", torch.arange(4.0))

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        x = self.first(sample)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.is_on):
            one, two = x.sin() + self.table, x.cos()
            with torch.enable_grad():
                one = self.first(one * two)
        return self.last(one + two)


def nodes(module: fx.GraphModule) -> list[fx.Node]:
    return [n for n in module.graph.nodes if n.op not in ("placeholder", "output")]


def test_their_nodes_are_in_their_place():
    denoiser = toy.seeded(Regions)
    sample = torch.randn(1, 4)
    captured = toy.capture_simple(denoiser, sample)
    module = toy.denoiser_of(captured)
    assert torch.equal(module(sample), denoiser(sample))
    assert all(isinstance(n.meta["val"], torch.Tensor) for n in nodes(module))
    assert not any(isinstance(n.target, torch._ops.HigherOrderOperator) for n in nodes(module))
    assert [n.target for n in nodes(module) if n.op == "call_function"] == [
        torch.ops.aten.linear.default,
        torch.ops.aten.sin.default,
        torch.ops.aten.add.Tensor,
        torch.ops.aten.cos.default,
        torch.ops.aten.mul.Tensor,
        torch.ops.aten.linear.default,
        torch.ops.aten.add.Tensor,
        torch.ops.aten.linear.default,
    ]


def test_such_a_denoiser_can_be_cut():
    programs = build_programs(toy.capture_simple(toy.seeded(Regions)).program, "paper")
    assert len(programs) == 3


def test_a_region_in_autocast_is_not_exported():
    captured = toy.capture_simple(Regions(is_on=True).eval())
    assert "runs in autocast" in captured.not_exported
