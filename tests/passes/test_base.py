from dataclasses import FrozenInstanceError, dataclass, replace
from typing import Any, ClassVar

import pytest

from hybridiff_compile.errors import PassError, VerifyError
from hybridiff_compile.ir import Level, Phase, StepProgram
from hybridiff_compile.passes import (
    CutStages,
    GuardPhase,
    LinkRanks,
    Pass,
    SkewStages,
    SplitCfg,
    build_programs,
    run_passes,
)
from tests import toy


@dataclass(frozen=True)
class Fails(Pass):
    name: ClassVar = "fail-always"
    needs: ClassVar = Level.SPLIT
    gives: ClassVar = Level.CUT

    def __call__(self, program: StepProgram) -> StepProgram:
        raise KeyError("stage7")


@dataclass(frozen=True)
class Lies(Fails):
    name: ClassVar = "promise-more"

    def __call__(self, program: StepProgram) -> StepProgram:
        return program


@dataclass(frozen=True)
class Breaks(Fails):
    name: ClassVar = "break-graph"

    def __call__(self, program: StepProgram) -> StepProgram:
        return replace(program, level=Level.CUT, parameters=frozenset({"lost"}))


def order(mode: str) -> dict[Phase, list[str]]:
    """Names of the passes in the order in which each phase's program went through them."""
    seen: list[tuple[StepProgram, str, StepProgram]] = []

    def observe(before: StepProgram, step: Pass, after: StepProgram, seconds: float) -> None:
        assert seconds >= 0
        seen.append((before, step.name, after))

    programs = build_programs(toy.captured().program, mode, (observe,))
    names = {}
    for phase, program in programs.items():
        chain = [program]
        names[phase] = []
        while found := [(b, n) for b, n, a in seen if a is chain[-1]]:
            chain.append(found[0][0])
            names[phase].insert(0, found[0][1])
    return names


def test_order_of_the_passes():
    exact = ["split-cfg", "link-ranks", "guard-phase"]
    serial = ["split-cfg", "cut-stages", "link-ranks", "guard-phase"]
    pipelined = ["split-cfg", "cut-stages", "skew-stages", "link-ranks", "guard-phase"]
    assert order("exact") == {Phase.SERIAL: exact}
    drained = ["split-cfg", "cut-stages", "drain-pipeline", "link-ranks", "guard-phase"]
    assert order("paper") == {
        Phase.SERIAL: serial,
        Phase.PIPELINED: pipelined,
        Phase.DRAINED: drained,
    }


def test_built_programs_are_guarded_and_of_their_phase():
    for phase, program in build_programs(toy.captured().program, "paper").items():
        assert (program.phase, program.level) == (phase, Level.GUARDED)


def test_pass_that_fails_is_named_with_the_passes_before_it():
    with pytest.raises(PassError, match=r"^split-cfg -> fail-always: KeyError: 'stage7'$") as e:
        run_passes(toy.captured().program, (SplitCfg(), Fails()))
    assert isinstance(e.value.__cause__, KeyError)


def test_pass_that_does_not_give_its_level_is_refused():
    with pytest.raises(PassError, match=r"promise-more: it promised level CUT, gave SPLIT"):
        run_passes(toy.split(), (Lies(),))


def test_program_that_does_not_verify_is_refused_as_such():
    with pytest.raises(VerifyError, match=r"^break-graph: V4: no rank holds \['lost'\]"):
        run_passes(toy.split(), (Breaks(),))


def test_observers_see_only_passes_that_succeeded():
    seen: list[str] = []

    def observe(before: StepProgram, step: Pass, after: StepProgram, seconds: float) -> None:
        seen.append(step.name)

    with pytest.raises(PassError):
        run_passes(toy.captured().program, (SplitCfg(), Fails()), (observe,))
    assert seen == ["split-cfg"]


def test_no_passes_give_the_program_back():
    program = toy.captured().program
    assert run_passes(program, ()) is program


@pytest.mark.parametrize("kind", [SplitCfg, CutStages, SkewStages, LinkRanks, GuardPhase])
def test_passes_are_frozen_values_that_carry_their_modules_name(kind: Any):
    assert kind() == kind()
    assert hash(kind()) == hash(kind())
    assert kind.__module__.rpartition(".")[2] == kind.name.replace("-", "_")
    assert "Contract:" in kind.__doc__
    with pytest.raises(FrozenInstanceError):
        kind().name = "other"
