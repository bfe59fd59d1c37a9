from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, fx, nn

from hybridiff_compile.ir import output_node
from hybridiff_compile.passes.balance import RATES, Cuts, Rates
from hybridiff_compile.passes.cut_stages import stages_at
from tests import toy
from tests.passes.test_balance import exported


class Skip(nn.Module):
    """The first convolution makes 64 channels of one, and its result is read at the very end."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 64, 3, padding=1)
        self.body = nn.ModuleList(nn.Conv2d(64, 64, 3, padding=1) for _ in range(3))
        self.last = nn.Conv2d(64, 1, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        x = skip = self.first(sample)
        for layer in self.body:
            x = layer(x).relu()
        return self.last(x + skip) * timestep


@pytest.fixture(scope="module")
def skip() -> fx.GraphModule:
    return exported(toy.seeded(Skip), torch.randn(1, 1, 16, 16), torch.tensor(2.0))


def names(nodes: object) -> list[str]:
    return [n.name for n in nodes]  # pyright: ignore


def after_first_layer(module: fx.GraphModule, rates: Rates) -> tuple[Cuts, int]:
    cuts = Cuts(module, rates)
    return cuts, names(cuts.noisy).index("relu")


def test_wide_result_of_little_work_is_made_again_from_the_picture(skip):
    cuts, index = after_first_layer(skip, RATES["cpu"])
    at = cuts.crossing(index)
    assert names(at.tensors) == ["sample", "relu"]
    assert names(at.again) == ["conv2d"]
    assert at.nbytes == 16 * 16 * 4 * (1 + 64)


def test_where_bytes_cross_as_fast_as_flops_nothing_is_made_again(skip):
    cuts, index = after_first_layer(skip, Rates(memory=27, link=1))
    at = cuts.crossing(index)
    assert names(at.tensors) == ["conv2d", "relu"]
    assert at.again == frozenset()


def test_what_takes_more_work_than_its_bytes_are_worth_is_sent(skip):
    cuts = Cuts(skip, RATES["cpu"])
    at = cuts.crossing(names(cuts.noisy).index("relu_1"))
    assert names(at.tensors) == ["sample", "relu_1"]
    assert "conv2d_1" not in names(at.again)


def test_what_is_made_again_costs_both_stages(skip):
    cuts, index = after_first_layer(skip, RATES["cpu"])
    (with_it,) = [p for p in cuts.places() if p.index == index]
    (without,) = [p for p in Cuts(skip, Rates(memory=27, link=1)).places() if p.index == index]
    conv = 2 * 9 * 64 * 16 * 16 + 27 * 4 * (9 * 64 + 64 + 64 * 16 * 16)
    assert with_it.cost[0] == without.cost[0]
    assert with_it.cost[1] - without.cost[1] == conv


def test_stages_with_a_part_made_again_have_the_bits_of_the_denoiser(skip):
    cuts, index = after_first_layer(skip, RATES["cpu"])
    stage0, stage1 = stages_at(skip, cuts, index)
    sample, timestep = torch.randn(1, 1, 16, 16), torch.tensor(0.5)
    with torch.no_grad():
        features = stage0(sample)
        assert features[0] is sample
        assert torch.equal(stage1(features, timestep), skip(sample, timestep))
        # The picture that it is made from is the one that crossed, however late.
        late = (sample + 1, features[1])
        assert not torch.equal(stage1(late, timestep), stage1(features, timestep))
    assert names(output_node(stage0.graph).args[0]) == ["sample", "relu"]


def placeholders(module: fx.GraphModule) -> Iterator[str]:
    return (n.name for n in module.graph.nodes if n.op == "placeholder")


def test_stage_1_takes_the_picture_from_the_cut_alone(skip):
    cuts, index = after_first_layer(skip, RATES["cpu"])
    stage0, stage1 = stages_at(skip, cuts, index)
    assert list(placeholders(stage0)) == ["sample"]
    assert list(placeholders(stage1)) == ["cut", "timestep"]


def test_of_several_sources_none_is_followed():
    class Sum(nn.Module):
        def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
            a = sample * timestep
            b, c = a.sin(), a.cos()
            both = (b + c).repeat(1, 64)
            return (both * 3).sum(-1, keepdim=True) + both

    module = exported(Sum(), torch.randn(1, 4), torch.tensor(2.0))
    cuts = Cuts(module, RATES["cpu"])
    at = cuts.crossing(names(cuts.noisy).index("sum_1"))
    # `repeat` of the sum is made again; the sum has two sources and crosses itself.
    assert names(at.tensors) == ["add", "sum_1"]
    assert names(at.again) == ["repeat"]
