import pytest

from hybridiff_compile.errors import PassError
from hybridiff_compile.ir import Level, Phase, StepProgram
from hybridiff_compile.passes import SkewStages, run_passes
from tests import toy
from tests.passes.golden import assert_golden, assert_leaves_input


def calls(program: StepProgram, rank: int) -> list[str]:
    return [n.target for n in program.graphs[rank].graph.nodes if n.op == "call_module"]


def test_golden():
    assert_golden(str(toy.skewed()), __file__)


def test_input_program_is_left_as_it_was():
    assert_leaves_input(toy.cut(), SkewStages())


def test_each_rank_keeps_only_its_stage():
    program = toy.skewed()
    assert calls(program, 0) == ["stage0", "pack"]
    assert calls(program, 1) == ["unpack", "stage1"]
    assert (program.phase, program.level) == (Phase.PIPELINED, Level.SKEWED)


def test_stages_are_those_of_the_serial_program():
    serial = toy.cut()
    skewed = run_passes(serial, (SkewStages(),))
    for rank, name in enumerate(("stage0", "stage1")):
        children = [p.graphs[rank].get_submodule(name) for p in (serial, skewed)]
        assert children[0] is children[1]


def test_prediction_of_rank_1_stands_for_both_branches():
    graph = toy.skewed().graphs[0].graph
    (cat,) = [n for n in graph.nodes if n.name == "cat"]
    assert [str(a) for a in cat.args[0]] == ["eps_c", "eps_c"]


def test_rank_1_reads_no_picture_but_the_kept_cut():
    first, second = toy.skewed().contracts
    assert "sample" not in second.inputs
    assert second.inputs == ("timestep", "encoder_hidden_states_c", "added_text_embeds_c")
    assert second.state == second.new_state == ("cut",)
    assert first.state == first.new_state == ()


def test_values_between_the_ranks_are_the_prediction_and_the_next_cut():
    first, second = toy.skewed().contracts
    assert first.imports == (("eps_c", 1),)
    assert second.exports == (("eps_c", 0),)
    assert second.imports == (("cut_next", 0),)
    assert first.exports == (("cut_next", 1),)


def test_program_that_is_not_cut_is_refused():
    with pytest.raises(PassError, match=r"skew-stages: skew-stages needs .*CUT.* got SPLIT"):
        run_passes(toy.split(), (SkewStages(),))
