import pytest
import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from hybridiff_compile.capture.call import DenoiserCall
from hybridiff_compile.capture.trace import capture
from hybridiff_compile.ir import nbytes, output_node
from hybridiff_compile.passes.balance import (
    RATES,
    Cuts,
    Place,
    choose,
    node_flops,
    noisy_nodes,
)
from hybridiff_compile.passes.balance import node_costs as costs_at
from hybridiff_compile.passes.cut_stages import stages_at
from tests import toy

RATE = RATES["cpu"]


def node_costs(module: fx.GraphModule) -> dict[fx.Node, int]:
    return costs_at(module, RATE)


def places(module: fx.GraphModule) -> list[Place]:
    return Cuts(module, RATE).places()


def exported(denoiser: nn.Module, *args: torch.Tensor) -> fx.GraphModule:
    """A denoiser as captured, from a doubled call with these first branches."""
    doubled = tuple(torch.cat([a, a]) if a.dim() else a for a in args)
    call = DenoiserCall.of(("sample", "timestep"), doubled, {})
    program = capture(denoiser, call, denoiser(*doubled)).program
    module = program.graphs[0].get_submodule("denoiser")
    assert isinstance(module, fx.GraphModule)
    return module


@pytest.fixture(scope="module")
def attention() -> fx.GraphModule:
    return exported(toy.seeded(toy.Attention), torch.randn(1, 10, 16), torch.tensor(2.0))


@pytest.fixture(scope="module")
def convolutions() -> fx.GraphModule:
    module = toy.captured().program.graphs[0].get_submodule("denoiser")
    assert isinstance(module, fx.GraphModule)
    return module


def test_fewest_bytes_win_among_balanced_places():
    heavy = Place(0, (40, 60), crossing=1)
    even = Place(1, (50, 50), crossing=900)
    near = Place(2, (51, 49), crossing=300)
    assert choose([heavy, even, near]) is near


def test_balance_wins_over_bytes_beyond_two_percent():
    even, off = Place(0, (50, 50), crossing=900), Place(1, (47, 53), crossing=1)
    assert choose([even, off]) is even


def test_better_balance_wins_among_equal_bytes():
    even, near = Place(1, (100, 100), crossing=8), Place(0, (99, 101), crossing=8)
    assert choose([near, even]) is even


def test_no_place_is_refused():
    with pytest.raises(ValueError, match="cannot be cut"):
        choose([])


def test_noisy_nodes_are_those_that_depend_on_the_first_argument(convolutions):
    found = [n.name for n in noisy_nodes(convolutions.graph)]
    assert found[0] == "conv2d"
    assert not {"embed_weight", "linear", "sin", "mul", "unsqueeze_1"} & set(found)
    assert sum(name.startswith("conv2d") for name in found) == 4


@pytest.mark.parametrize("name", ["attention", "convolutions"])
def test_costs_of_every_place_add_up_to_the_whole(name, request):
    module = request.getfixturevalue(name)
    total = sum(node_costs(module).values())
    assert total > sum(node_flops(module).values()) > 0
    cuts = Cuts(module, RATE)
    again = {p.index: bool(cuts.crossing(p.index).again) for p in cuts.places()}
    assert {sum(p.cost) for p in cuts.places() if not again[p.index]} == {total}
    assert all(sum(p.cost) > total for p in cuts.places() if again[p.index])


@pytest.mark.parametrize("name", ["attention", "convolutions"])
def test_cost_of_stage_0_only_grow_from_place_to_place(name, request):
    found = places(request.getfixturevalue(name))
    first = [p.cost[0] for p in found]
    assert first == sorted(first)
    assert [p.index for p in found] == sorted({p.index for p in found})


@pytest.mark.parametrize("name", ["attention", "convolutions"])
def test_crossing_bytes_are_those_of_the_tensors_that_stage_0_hands_over(name, request):
    module = request.getfixturevalue(name)
    cuts = Cuts(module, RATE)
    assert cuts.places()
    for place in cuts.places():
        stage0, _ = stages_at(module, cuts, place.index)
        assert nbytes(output_node(stage0.graph).meta["val"]) == place.crossing > 0


def test_places_skip_where_something_other_than_a_tensor_would_cross():
    class Halves(nn.Module):
        def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            a, b = torch.ops.aten.split.Tensor(sample * timestep, 2, -1)
            return a * b + a

    module = exported(Halves(), torch.randn(1, 4), torch.tensor(2.0))
    noisy = noisy_nodes(module.graph)
    behind = [noisy[p.index].name for p in places(module)]
    assert "split" not in behind
    assert "mul" in behind


@pytest.mark.parametrize("kind", [toy.Toy, toy.Attention])
def test_node_flops_are_those_that_torch_counts_on_the_module(kind):
    denoiser = toy.seeded(kind)
    if kind is toy.Toy:
        args = tuple(toy.call_of().branch(0).tensors().values())
        args = (*args[:3], {"text_embeds": args[3]})
        module = toy.captured().program.graphs[0].get_submodule("denoiser")
    else:
        args = (torch.randn(1, 10, 16), torch.tensor(2.0))
        module = exported(denoiser, *args)
    assert isinstance(module, fx.GraphModule)
    # the CPU's fused attention has no formula in torch; its plain kernels have
    plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, plain, torch.no_grad():
        denoiser(*args)
    assert sum(node_flops(module).values()) == counter.get_total_flops()


def test_attention_costs_two_matrix_products(attention):
    flops = {n.name: f for n, f in node_flops(attention).items() if f}
    found = [f for name, f in flops.items() if "attention" in name]
    assert found == [2 * 2 * (2 * 10 * 10 * 8)] * 2  # two products of 2 heads, 10 x 10 x 8


def test_embedding_costs_where_it_is_first_read(convolutions):
    noisy = noisy_nodes(convolutions.graph)
    costs = {n.name: c for n, c in node_costs(convolutions).items()}
    at = {noisy[p.index].name: p for p in places(convolutions)}
    embedding = costs["linear"] + costs["mul"]
    assert embedding > 0
    assert at["conv2d"].cost[0] == costs["conv2d"]
    assert at["silu"].cost[0] == costs["conv2d"] + embedding  # the second reader is later


def test_reading_weights_costs_time_too(attention):
    costs, flops = node_costs(attention), node_flops(attention)
    linear = next(n for n in costs if "linear" in n.name)
    weights = [n.meta["val"] for n in linear.all_input_nodes[1:]]
    assert len(weights) == 2  # with its bias
    assert costs[linear] - flops[linear] == 27 * sum(w.numel() * 4 for w in weights)
    attention_only = next(n for n in costs if "attention" in n.name)
    assert costs[attention_only] == flops[attention_only] > 0
