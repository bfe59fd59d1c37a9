import pytest
import torch
from torch import fx, nn

from hybridiff_compile.errors import PassError
from hybridiff_compile.ir import Level
from hybridiff_compile.layout import PackCut
from hybridiff_compile.passes import CutStages, run_passes
from hybridiff_compile.passes.cut_stages import stages
from tests import toy
from tests.passes.golden import assert_golden, assert_leaves_input


def placeholders(module: nn.Module) -> list[str]:
    assert isinstance(module, fx.GraphModule)
    return [n.name for n in module.graph.nodes if n.op == "placeholder"]


def parameters(module: nn.Module) -> set[str]:
    assert isinstance(module, fx.GraphModule)
    return {str(n.target) for n in module.graph.nodes if n.op == "get_attr"}


@pytest.fixture(scope="module")
def denoiser() -> fx.GraphModule:
    module = toy.captured().program.graphs[0].get_submodule("denoiser")
    assert isinstance(module, fx.GraphModule)
    return module


@pytest.fixture(scope="module")
def pair(denoiser: fx.GraphModule) -> tuple[fx.GraphModule, fx.GraphModule]:
    return stages(denoiser)


def test_golden():
    assert_golden(str(toy.cut()), __file__)


def test_input_program_is_left_as_it_was():
    assert_leaves_input(toy.split(), CutStages())


def test_stages_one_after_the_other_have_the_bits_of_the_denoiser(denoiser, pair):
    stage0, stage1 = pair
    call = toy.call_of(seed=5).branch(1).tensors()
    with torch.no_grad():
        expected = denoiser(*call.values())
        features = stage0(*(call[n] for n in placeholders(stage0)))
        out = stage1(features, *(call[n] for n in placeholders(stage1)[1:]))
    assert torch.equal(out, expected)
    assert out.stride() == expected.stride()


def test_packed_cut_feeds_stage1_the_same_bits(denoiser, pair):
    stage0, stage1 = pair
    call = toy.call_of(seed=5).branch(1).tensors()
    first, second = toy.skewed().graphs
    pack, unpack = first.get_submodule("pack"), second.get_submodule("unpack")
    with torch.no_grad():
        features = stage0(*(call[n] for n in placeholders(stage0)))
        out = stage1(unpack(pack(features)), *(call[n] for n in placeholders(stage1)[1:]))
        assert torch.equal(out, denoiser(*call.values()))


def test_embeddings_that_both_stages_read_are_made_by_both(pair):
    stage0, stage1 = pair
    embeddings = {"timestep", "encoder_hidden_states", "added_text_embeds"}
    assert set(placeholders(stage0)) == {"sample", *embeddings}
    assert set(placeholders(stage1)) == {"cut", *embeddings}
    both = parameters(stage0) & parameters(stage1)
    assert both == {"embed.weight", "embed.bias", "scale"}


def test_skip_connection_crosses_and_the_noisy_picture_does_not(pair):
    stage0, stage1 = pair
    assert "sample" not in placeholders(stage1)
    assert {"conv_in.weight", "down.weight"} <= parameters(stage0) - parameters(stage1)
    assert {"up.weight", "conv_out.weight"} <= parameters(stage1) - parameters(stage0)


def test_stages_share_the_denoisers_weights(denoiser, pair):
    own = dict(denoiser.named_parameters())
    for stage in pair:
        for name, weight in stage.named_parameters():
            assert weight is own[name]


def test_stages_cover_the_denoisers_parameters(pair):
    assert parameters(pair[0]) | parameters(pair[1]) == toy.captured().program.parameters


def test_only_rank_0_keeps_its_cut():
    program = toy.cut()
    first, second = program.contracts
    assert (first.new_state, second.new_state) == (("cut",), ())
    kinds = [any(isinstance(m, PackCut) for m in g.modules()) for g in program.graphs]
    assert kinds == [True, False]
    assert program.level is Level.CUT


def test_kept_cut_is_one_buffer_of_the_crossing_bytes():
    (cut,) = [n for n in toy.cut().graphs[0].graph.nodes if n.name == "cut"]
    assert cut.meta["val"].dtype == torch.uint8
    assert cut.meta["val"].shape == (2 * 8 * 8 * 8 * 4,)  # two float32[1,8,8,8]: skip, features


def test_program_that_is_not_split_is_refused():
    with pytest.raises(PassError, match=r"cut-stages: cut-stages needs .*SPLIT.* got CAPTURED"):
        run_passes(toy.captured().program, (CutStages(),))


def test_denoiser_of_one_operation_cannot_be_cut():
    class One(nn.Module):
        def forward(self, sample: torch.Tensor, **_: object) -> torch.Tensor:
            return sample * 2

    call = toy.DenoiserCall.of(("sample",), (torch.ones(2, 3),), {})
    program = toy.capture(One(), call, torch.full((2, 3), 2.0)).program
    with pytest.raises(PassError, match=r"split-cfg -> cut-stages: .*cannot be cut"):
        run_passes(program, (toy.SplitCfg(), CutStages()))
