"""A denoiser as a leaf of a graph."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hybridiff_compile.capture.branches import Branches
from hybridiff_compile.capture.call import DenoiserCall
from hybridiff_compile.capture.leaf import leaf_graphs
from hybridiff_compile.capture.trace import capture, capture_step
from hybridiff_compile.errors import CaptureError
from hybridiff_compile.ir import RankProgram, has_leaf
from hybridiff_compile.lower import compose
from hybridiff_compile.passes import build_programs
from tests import toy

NAMES = ("x", "timestep", "scale")


class Decides(nn.Module):
    """By what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, scale: float) -> dict[str, object]:
        out = self.body(x if x.sum() > timestep else 2 * x)
        return {"sample": scale * out, "nothing": None}


def call_of(seed: int, scale: float = 1.5) -> DenoiserCall:
    g = torch.Generator().manual_seed(seed)
    return DenoiserCall.of(
        NAMES, (torch.randn(1, 3, 4, generator=g), torch.tensor(0.0)), {"scale": scale}
    )


@torch.no_grad()
def test_its_graph_calls_the_module_with_the_constants_of_the_call():
    denoiser = toy.seeded(Decides)
    calls = [call_of(0), call_of(1), call_of(0, scale=2.0)]
    answers = [call.given_to(denoiser) for call in calls]
    graphs = leaf_graphs(denoiser, calls, answers)
    assert graphs[0] is graphs[1]
    assert graphs[2] is not graphs[0]
    for call, graph, answer in zip(calls, graphs, answers, strict=True):
        assert has_leaf(graph)
        assert torch.equal(graph(*call.tensors().values()), answer["sample"])
        nodes = {n.name: n.meta["val"].shape for n in graph.graph.nodes if n.op != "output"}
        assert nodes == {"x": (1, 3, 4), "timestep": (), "prediction": (1, 3, 4)}


@torch.no_grad()
def test_it_calls_the_forward_of_the_class():
    denoiser = toy.seeded(Decides)
    call = call_of(0)
    answer = call.given_to(denoiser)
    (graph,) = leaf_graphs(denoiser, [call], [answer])
    denoiser.forward = lambda *_, **__: pytest.fail("this would ask the ranks again")
    assert torch.equal(graph(*call.tensors().values()), answer["sample"])


@torch.no_grad()
def test_a_step_is_captured_so_if_it_cannot_be_exported():
    denoiser, calls = toy.seeded(Decides), (call_of(0), call_of(1))
    step = Branches(calls)
    answers = [call.given_to(denoiser) for call in calls]
    captured = capture_step(denoiser, step, answers)
    assert "Decides cannot be exported" in captured.not_exported
    (graph,), (contract,) = captured.program.graphs, captured.program.contracts
    made = graph(*(step.inputs()[n] for n in contract.inputs))["prediction"]
    assert torch.equal(made, torch.cat([answer["sample"] for answer in answers]))


def test_a_batch_whose_rows_depend_on_each_other_is_refused():
    denoiser = toy.seeded(Decides)  # it adds up all rows
    one = call_of(0).tensors()["x"]
    call = DenoiserCall.of(NAMES, (torch.cat([one, -0.5 * one]), torch.tensor(0.0)), {"scale": 1.0})
    answer = call.given_to(denoiser)
    with torch.no_grad(), pytest.raises(CaptureError, match="depend on each other"):
        capture(denoiser, call, answer)


@torch.no_grad()
@pytest.mark.parametrize("scope", ["whole", "stage", "regional"])
def test_no_part_of_a_program_with_a_leaf_is_compiled(scope):
    denoiser, call = toy.seeded(Decides), call_of(0)
    step = Branches((call, call_of(1)))
    captured = capture_step(denoiser, step, [c.given_to(denoiser) for c in step.calls])
    programs = build_programs(captured.program, "exact")
    both = [RankProgram.of(p, r) for r in range(2) for p in programs.values()]
    assert compose.parts(both, scope) == []
