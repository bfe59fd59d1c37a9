import pytest

from hybridiff_compile.errors import PassError
from hybridiff_compile.ir import Level, Phase, StepProgram
from hybridiff_compile.passes import DrainPipeline, build_programs, run_passes
from tests import toy
from tests.passes.golden import assert_golden, assert_leaves_input


def drained() -> StepProgram:
    return run_passes(toy.cut(), (DrainPipeline(),))


def test_golden():
    assert_golden(str(drained()), __file__)


def test_input_program_is_left_as_it_was():
    assert_leaves_input(toy.cut(), DrainPipeline())


def test_rank_0_runs_nothing_and_holds_nothing():
    program = drained()
    assert (program.phase, program.level) == (Phase.DRAINED, Level.SKEWED)
    assert program.phase.kind == "pipelined"
    assert list(program.graphs[0].children()) == []
    assert [n.op for n in program.graphs[0].graph.nodes] == [
        "placeholder",
        "call_function",
        "output",
    ]


def test_nothing_but_the_prediction_crosses_and_nothing_is_kept():
    first, last = drained().contracts
    assert (first.inputs, first.imports, first.exports) == ((), (("eps_c", 1),), ())
    assert (last.state, last.new_state) == (("cut",), ())
    assert (last.imports, last.exports) == ((), (("eps_c", 0),))


def test_rank_1_runs_the_stage_of_the_serial_program():
    serial = toy.cut()
    after = run_passes(serial, (DrainPipeline(),))
    assert serial.graphs[1].get_submodule("stage1") is after.graphs[1].get_submodule("stage1")


def test_parameters_to_cover_are_those_of_stage_1():
    program = drained()
    assert "conv_out.weight" in program.parameters
    assert program.parameters < toy.cut().parameters


def test_papers_programs_end_with_it():
    assert list(build_programs(toy.captured().program, "paper")) == [
        Phase.SERIAL,
        Phase.PIPELINED,
        Phase.DRAINED,
    ]


def test_program_that_is_not_cut_is_refused():
    with pytest.raises(PassError, match=r"drain-pipeline: drain-pipeline needs .*CUT.* got SPLIT"):
        run_passes(toy.split(), (DrainPipeline(),))
