import pytest
import torch
from torch import fx, nn

from hybridiff_compile.errors import PassError
from hybridiff_compile.ir import Level, Phase, StepProgram
from hybridiff_compile.passes import CutStages, SkewBatch, SplitCfg, build_programs, run_passes
from tests import loopback, toy
from tests.passes.golden import assert_golden, assert_leaves_input


def cut() -> StepProgram:
    return run_passes(toy.together().program, (SplitCfg(), CutStages()))


def skewed() -> StepProgram:
    return run_passes(cut(), (SkewBatch(),))


def calls(program: StepProgram, rank: int) -> list[str]:
    return [n.target for n in program.graphs[rank].graph.nodes if n.op == "call_module"]


def names(module: nn.Module) -> list[str]:
    assert isinstance(module, fx.GraphModule)
    return [n.name for n in module.graph.nodes if n.op == "placeholder"]


def test_golden():
    guarded = build_programs(toy.together().program, "asyncdiff")
    programs = (toy.together().program, cut(), skewed(), *guarded.values())
    assert_golden("\n\n".join(map(str, programs)), __file__)


def test_input_program_is_left_as_it_was():
    assert_leaves_input(cut(), SkewBatch())


def test_serial_step_is_rank_0s_alone():
    program = cut()
    assert calls(program, 0) == ["stage0", "stage1", "pack"]
    assert calls(program, 1) == []
    first, second = program.contracts
    assert (first.imports, first.exports, first.new_state) == ((), (), ("cut",))
    assert second.placeholders == second.returned == ()


def test_each_rank_keeps_only_its_stage():
    program = skewed()
    assert calls(program, 0) == ["stage0", "pack"]
    assert calls(program, 1) == ["unpack", "stage1"]
    assert (program.phase, program.level) == (Phase.PIPELINED, Level.SKEWED)


def test_stages_are_those_of_the_serial_program():
    serial = cut()
    after = run_passes(serial, (SkewBatch(),))
    for rank, name in enumerate(("stage0", "stage1")):
        assert after.graphs[rank].get_submodule(name) is serial.graphs[0].get_submodule(name)


def test_rank_1_reads_no_picture_but_the_kept_cut():
    first, second = skewed().contracts
    assert first.inputs == ("sample", "timestep", "encoder_hidden_states", "added_text_embeds")
    assert second.inputs == first.inputs[1:]
    assert second.state == second.new_state == ("cut",)
    assert first.state == first.new_state == ()


def test_values_between_the_ranks_are_the_prediction_and_the_next_cut():
    first, second = skewed().contracts
    assert first.imports == (("eps", 1),)
    assert second.exports == (("eps", 0),)
    assert second.imports == (("cut_next", 0),)
    assert first.exports == (("cut_next", 1),)


def test_there_is_no_drained_step():
    programs = build_programs(toy.together().program, "asyncdiff")
    assert list(programs) == [Phase.SERIAL, Phase.PIPELINED]


def test_two_ranks_predict_from_the_picture_of_the_step_before():
    programs = build_programs(toy.together().program, "asyncdiff")
    stage0, stage1 = (programs[Phase.SERIAL].graphs[0].get_submodule(f"stage{i}") for i in (0, 1))
    steps = [toy.call_of(seed=seed).tensors() for seed in range(4)]
    made = []
    with loopback.pair(programs) as pair, torch.no_grad():
        for i, fed in enumerate(steps):
            phase = Phase.PIPELINED if i else Phase.SERIAL
            if i == 1:  # as the driver feeds it
                fed = {**fed, **pair.ranks[0].kept(0, ("cut",))}
                pair.ranks[1]._values[0].update(cut=fed["cut"])
            first, _ = pair.step((phase, phase), (i, i), fed)
            made.append(first["prediction"])
        for i, values in enumerate(steps):
            before = steps[max(0, i - 1)]
            cut = stage0(*(before[n] for n in names(stage0)))
            expected = stage1(cut, *(values[n] for n in names(stage1)[1:]))
            assert torch.equal(made[i], expected)


def test_program_that_was_not_cut_is_refused():
    with pytest.raises(PassError, match=r"skew-batch: skew-batch needs .*CUT.* got SPLIT"):
        run_passes(toy.split(), (SkewBatch(),))
