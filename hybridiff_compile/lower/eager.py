"""Run a rank's program as it is: the exported graph's own kernels, one after the other."""

from __future__ import annotations

from hybridiff_compile.ir import RankProgram, Variant


def lower(program: RankProgram) -> Variant:
    """Make a variant that runs the graph eagerly; the bits are those of the unsplit module."""
    return Variant(program.phase, program.contract, program.specs, program.module)
