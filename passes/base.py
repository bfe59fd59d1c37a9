"""What a pass is, and the runner that applies a list of them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from hybridiff_compile.errors import PassError
from hybridiff_compile.ir import Level, StepProgram
from hybridiff_compile.passes.verify import verify

#: Called after each pass with (program before, pass, program after, seconds).
Observer = Callable[[StepProgram, "Pass", StepProgram, float], None]


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of a step program: program in, new program out, its input left as it was.

    Attributes:
        name: verb-object; the module carries the same name.
        needs: lowest level that it accepts.
        gives: level of what it returns; a program already there is refused.
    """

    name: ClassVar[str]
    needs: ClassVar[Level]
    gives: ClassVar[Level]

    @abstractmethod
    def __call__(self, program: StepProgram) -> StepProgram:
        """Return the rewritten program."""


def run_passes(
    program: StepProgram, passes: Sequence[Pass], observers: Sequence[Observer] = ()
) -> StepProgram:
    """Apply passes in order, verifying the program after each.

    Args:
        program: the program to start from; it is not edited.
        passes: in the order of application.
        observers: see each step (dumping, timing); they cannot change it.

    Raises:
        PassError: a pass was given the wrong level, failed, or gave a program that does not verify
            (then a VerifyError). The message begins with the passes so far.
    """
    done: list[str] = []
    for step in passes:
        done.append(step.name)
        where = " -> ".join(done)
        if not step.needs <= program.level < step.gives:
            raise PassError(
                f"{where}: {step.name} needs a program of level {step.needs.name} or later, before "
                f"{step.gives.name}, got {program.level.name}; reorder the passes."
            )
        start = time.perf_counter()
        try:
            after = step(program)
            if after.level != step.gives:
                raise PassError(f"it promised level {step.gives.name}, gave {after.level.name}")
            verify(after)
            for module in after.graphs:
                module.recompile()  # passes edit graphs; the code that runs is made from them here
        except PassError as e:
            raise type(e)(f"{where}: {e}") from e
        except Exception as e:
            raise PassError(f"{where}: {type(e).__name__}: {e}") from e
        for observe in observers:
            observe(program, step, after, time.perf_counter() - start)
        program = after
    return program
