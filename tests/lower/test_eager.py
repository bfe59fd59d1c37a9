from hybridiff_compile.ir import Phase, RankProgram
from hybridiff_compile.lower.eager import lower
from tests import toy


def test_eager_variant_is_the_rank_program_itself():
    program = RankProgram.of(toy.guarded(), 0)
    variant = lower(program)
    assert variant.phase is Phase.SERIAL
    assert variant.call is program.module
    assert (variant.contract, variant.specs) == (program.contract, program.specs)
