import pytest
import torch

from hybridiff_compile.capture.branches import Branches
from hybridiff_compile.errors import PassError
from hybridiff_compile.ir import BRANCHES, Level, Phase, StepProgram
from hybridiff_compile.passes import AlternateBranches, CutStages, run_passes
from tests import toy
from tests.passes.golden import assert_golden, assert_leaves_input


def cut() -> StepProgram:
    return run_passes(toy.split(), (CutStages(keep_cut=False),))


def alternated(branch: str) -> StepProgram:
    return run_passes(cut(), (AlternateBranches(branch),))


def test_golden():
    assert_golden("\n\n".join(str(alternated(b)) for b in BRANCHES), __file__)


def test_input_program_is_left_as_it_was():
    assert_leaves_input(cut(), AlternateBranches("u"))


@pytest.mark.parametrize(("branch", "phase"), [("u", Phase.GUIDED_U), ("c", Phase.GUIDED_C)])
def test_phase_says_which_branch_rank_0_works_on(branch, phase):
    program = alternated(branch)
    assert (program.phase, program.level) == (phase, Level.SKEWED)
    assert f"encoder_hidden_states_{branch}" in program.contracts[0].inputs


def test_both_programs_share_the_stages_of_the_serial_one():
    serial = cut()
    for branch in BRANCHES:
        program = run_passes(serial, (AlternateBranches(branch),))
        for rank, name in enumerate(("stage0", "stage1")):
            assert program.graphs[rank].get_submodule(name) is serial.graphs[0].get_submodule(name)


def test_what_one_program_keeps_is_what_the_other_one_reads():
    one, other = (alternated(b).contracts[1] for b in BRANCHES)
    assert set(one.new_state) == set(other.state)
    assert set(other.new_state) == set(one.state)


def test_late_prediction_is_exact_for_the_step_and_branch_of_its_features():
    serial, denoiser = cut(), toy.seeded(toy.Toy)
    before, now = (toy.call_of(seed=s) for s in (1, 2))
    rows = toy.captured().rows
    values = Branches.of_batch(before, rows).inputs()
    first, _ = run_passes(serial, (AlternateBranches("u"),)).graphs
    _, last = run_passes(serial, (AlternateBranches("c"),)).graphs
    with torch.no_grad():
        given = [n.name for n in first.graph.nodes if n.op == "placeholder" and n.name != "late"]
        made = first(*(values[n] for n in given), torch.zeros(1, 4, 8, 8))
        fed = {
            **Branches.of_batch(now, rows).inputs(),
            **{f"late_{k}": v for k, v in values.items()},
        }
        fed |= {"cut": made["cut_next"], "cut_next": torch.empty(0)}
        names = [n.name for n in last.graph.nodes if n.op == "placeholder"]
        late = last(*(fed[n] for n in names))["late"]
    assert torch.equal(late, toy.run(denoiser, before.branch(0)))


def test_program_that_was_not_cut_is_refused():
    with pytest.raises(PassError, match="alternate-branches needs a program of level CUT"):
        run_passes(toy.split(), (AlternateBranches("u"),))
