import pytest
from torch import fx

from hybridiff_compile import ops
from hybridiff_compile.errors import PassError
from hybridiff_compile.ir import Level, Phase, StepProgram, clone
from hybridiff_compile.passes import GuardPhase, build_programs, run_passes
from tests import toy
from tests.passes.golden import assert_golden, assert_leaves_input


@pytest.fixture(scope="module")
def paper() -> dict[Phase, StepProgram]:
    return build_programs(toy.captured().program, "paper")


PHASES = (Phase.SERIAL, Phase.PIPELINED, Phase.DRAINED)


def names(program: StepProgram, rank: int) -> list[str]:
    return [n.name for n in program.graphs[rank].graph.nodes]


def node(program: StepProgram, rank: int, name: str) -> fx.Node:
    return next(n for n in program.graphs[rank].graph.nodes if n.name == name)


def test_golden(paper):
    programs = (toy.guarded(), *paper.values())
    assert_golden("\n\n".join(str(p) for p in programs), __file__)


def test_input_program_is_left_as_it_was():
    assert_leaves_input(toy.linked(), GuardPhase())


def test_stamp_is_the_last_input_before_the_state(paper):
    program = paper[Phase.PIPELINED]
    assert program.level is Level.GUARDED
    assert program.contracts[1].placeholders[-2:] == ("stamp", "cut")
    assert names(program, 1)[: len(program.contracts[1].placeholders)] == list(
        program.contracts[1].placeholders
    )


@pytest.mark.parametrize("phase", PHASES)
def test_the_check_stands_right_before_the_first_value_that_leaves_or_is_used(paper, phase):
    first, second = names(paper[phase], 0), names(paper[phase], 1)
    linked = {Phase.PIPELINED: "send_cut_next"}
    assert first.index("guard1") + 1 == first.index(linked.get(phase, "wait_eps_c"))
    assert second.index("guard0") + 1 == second.index("send_eps_c")


@pytest.mark.parametrize("phase", PHASES)
def test_guard_knows_the_phase_of_its_program(paper, phase):
    for rank, peer in ((0, 1), (1, 0)):
        guard = node(paper[phase], rank, f"guard{peer}")
        assert ops.is_guard(guard)
        assert guard.args[2:] == (int(phase), peer)


def test_guard_is_returned_so_that_it_is_not_dead_code(paper):
    for program in paper.values():
        for module in program.graphs:
            graph = clone(module).graph
            before = [n.name for n in graph.nodes]
            graph.eliminate_dead_code()
            assert [n.name for n in graph.nodes] == before


def test_program_that_is_not_linked_is_refused():
    with pytest.raises(PassError, match=r"guard-phase: guard-phase needs .*LINKED.* got SPLIT"):
        run_passes(toy.split(), (GuardPhase(),))
