"""Good programs that a test may break."""

from __future__ import annotations

import pytest

from hybridiff_compile.ir import Phase, StepProgram
from hybridiff_compile.passes import build_programs
from tests import toy
from tests.passes.edit import copied


@pytest.fixture
def split() -> StepProgram:
    return copied(toy.split())


@pytest.fixture
def linked() -> StepProgram:
    return copied(toy.linked())


@pytest.fixture
def guarded() -> StepProgram:
    return copied(toy.guarded())


@pytest.fixture
def pipelined() -> StepProgram:
    return copied(build_programs(toy.captured().program, "paper")[Phase.PIPELINED])
