import pytest
from torch import fx

from hybridiff_compile import ops
from hybridiff_compile.errors import PassError
from hybridiff_compile.ir import Level, Phase, StepProgram
from hybridiff_compile.passes import LinkRanks, run_passes
from tests import toy
from tests.passes.golden import assert_golden, assert_leaves_input


def pipelined() -> StepProgram:
    return run_passes(toy.skewed(), (LinkRanks(),))


def nodes(program: StepProgram, rank: int) -> list[fx.Node]:
    return list(program.graphs[rank].graph.nodes)


def test_golden():
    assert_golden(f"{toy.linked()}\n\n{pipelined()}", __file__)


def test_input_programs_are_left_as_they_were():
    assert_leaves_input(toy.split(), LinkRanks())
    assert_leaves_input(toy.skewed(), LinkRanks())


def test_contracts_no_longer_import_or_export():
    for program in (toy.linked(), pipelined()):
        for contract in program.contracts:
            assert contract.imports == contract.exports == ()
    assert pipelined().phase is Phase.PIPELINED
    assert pipelined().level is Level.LINKED


def test_receive_is_posted_before_any_compute_and_awaited_right_before_its_reader():
    ordered = nodes(toy.linked(), 0)
    names = [n.name for n in ordered]
    assert names.index("recv_eps_c") < names.index("eps_u") < names.index("wait_eps_c")
    assert names.index("wait_eps_c") + 1 == names.index("cat")


def test_send_starts_right_after_its_value_and_is_awaited_at_the_end():
    names = [n.name for n in nodes(pipelined(), 0)]
    assert names.index("send_cut_next") == names.index("cut") + 1
    assert names.index("sent_cut_next") == len(names) - 2


def test_both_ends_of_a_link_name_the_same_tag_and_group():
    program = pipelined()
    ends = {
        n.name: n.args[-3:] for r in range(2) for n in nodes(program, r) if n.op == "call_function"
    }
    assert ends["send_eps_c"][1:] == ends["recv_eps_c"][1:]
    assert ends["send_cut_next"][1:] == ends["recv_cut_next"][1:]
    assert ends["send_cut_next"][1] != ends["send_eps_c"][1]
    assert ends["send_cut_next"][2] == ops.group_name(0, 1)
    assert ends["send_eps_c"][2] == ops.group_name(1, 0)


def test_program_of_one_graph_is_refused():
    with pytest.raises(PassError, match=r"link-ranks: link-ranks needs .*SPLIT.* got CAPTURED"):
        run_passes(toy.captured().program, (LinkRanks(),))
