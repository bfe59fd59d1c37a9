import pytest

from hybridiff_compile.errors import PassError
from hybridiff_compile.ir import Level, Phase
from hybridiff_compile.passes import SplitCfg, run_passes
from tests import toy
from tests.passes.golden import assert_golden, assert_leaves_input


def test_golden():
    assert_golden(f"{toy.captured().program}\n\n{toy.split()}", __file__)


def test_input_program_is_left_as_it_was():
    assert_leaves_input(toy.captured().program, SplitCfg())


def test_each_rank_reads_its_own_branch_only():
    program = toy.split()
    first, second = program.contracts
    own = ("sample", "encoder_hidden_states", "added_text_embeds")
    for contract, branch in ((first, "u"), (second, "c")):
        assert set(contract.inputs) == {"timestep", *(f"{name}_{branch}" for name in own)}
    assert (program.phase, program.level) == (Phase.SERIAL, Level.SPLIT)


def test_prediction_of_branch_c_is_the_one_value_between_the_ranks():
    first, second = toy.split().contracts
    assert first.imports == (("eps_c", 1),)
    assert second.exports == (("eps_c", 0),)
    assert first.exports == second.imports == ()
    assert (first.results, second.results) == (("prediction",), ())


def test_both_ranks_call_the_same_denoiser():
    first, second = toy.split().graphs
    assert first.get_submodule("denoiser") is second.get_submodule("denoiser")


def test_program_that_is_split_already_is_refused():
    with pytest.raises(PassError, match=r"split-cfg -> split-cfg: split-cfg needs .* got SPLIT"):
        run_passes(toy.captured().program, (SplitCfg(), SplitCfg()))
