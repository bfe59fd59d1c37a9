from dataclasses import replace

import pytest
import torch
from torch import fx

from hybridiff_compile.ir import (
    Level,
    Phase,
    RankContract,
    RankProgram,
    clone,
    format_value,
    nbytes,
    output_node,
    returned_values,
)
from tests import toy


def test_contract_lists_placeholders_and_returned_values_in_order():
    contract = RankContract(
        inputs=("x", "t"),
        state=("cut",),
        imports=(("eps", 1),),
        results=("prediction",),
        new_state=("cut",),
        exports=(("cut_next", 1),),
    )
    assert contract.placeholders == ("x", "t", "cut", "eps")
    assert contract.returned == ("prediction", "cut", "cut_next")


def test_program_with_another_number_of_contracts_is_refused():
    with pytest.raises(ValueError, match="1 graphs but 2 contracts"):
        replace(toy.captured().program, contracts=toy.split().contracts)


def test_levels_are_ordered_as_the_passes_run():
    assert sorted(Level) == [
        Level.CAPTURED,
        Level.SPLIT,
        Level.CUT,
        Level.SKEWED,
        Level.LINKED,
        Level.GUARDED,
    ]


def test_clone_shares_children_and_parameters_but_no_node():
    module = toy.split().graphs[0]
    copy = clone(module)
    assert str(copy.graph) == str(module.graph)
    assert copy.code == module.code
    assert copy.get_submodule("denoiser") is module.get_submodule("denoiser")
    assert not set(copy.graph.nodes) & set(module.graph.nodes)
    denoiser = module.get_submodule("denoiser")
    assert isinstance(denoiser, fx.GraphModule)
    own = dict(denoiser.named_parameters())
    assert all(p is own[n] for n, p in clone(denoiser).named_parameters())


def test_clone_can_be_edited_without_its_original():
    module = toy.split().graphs[0]
    before = str(module.graph)
    graph = clone(module).graph
    output_node(graph).args = ({},)
    assert str(module.graph) == before


def test_returned_values_are_a_copy():
    graph = toy.split().graphs[0].graph
    returned_values(graph).clear()
    assert [*returned_values(graph)] == ["prediction"]
    assert output_node(graph).op == "output"


def test_rank_program_has_a_meta_tensor_for_every_placeholder():
    program = RankProgram.of(toy.guarded(), 1)
    assert (program.phase, program.rank) == (Phase.SERIAL, 1)
    assert program.module is not None
    assert tuple(program.specs) == program.contract.placeholders
    kinds = {n: (tuple(t.shape), t.dtype) for n, t in program.specs.items()}
    assert kinds["sample_c"] == ((1, 4, 8, 8), torch.float32)
    assert kinds["stamp"] == ((2,), torch.int64)
    assert kinds["timestep"] == ((), torch.float32)
    assert {t.device.type for t in program.specs.values()} == {"meta"}


def test_specs_keep_strides():
    program = toy.guarded()
    module = clone(program.graphs[1])
    sample = next(n for n in module.graph.nodes if n.name == "sample_c")
    last = torch.empty(1, 4, 8, 8, device="meta").to(memory_format=torch.channels_last)
    sample.meta = {"val": last}
    program = replace(program, graphs=(program.graphs[0], module))
    assert RankProgram.of(program, 1).specs["sample_c"].stride() == last.stride()


def test_bytes_of_tensors_and_of_tuples_of_them():
    assert nbytes(torch.empty(2, 3, dtype=torch.float16)) == 12
    assert nbytes((torch.empty(2), [torch.empty(3)])) == 20
    assert nbytes(7) == 0


def test_values_print_short():
    assert format_value(torch.empty(1, 4, 32, 32)) == "f32[1,4,32,32]"
    assert format_value(torch.empty((), dtype=torch.int64)) == "i64[]"
    assert format_value((torch.empty(250_000), torch.empty(125_000))) == "2 tensors, 1.50 MB"
    assert format_value(None) == "?"


def test_program_prints_its_phase_level_and_every_node():
    program = toy.guarded()
    text = str(program)
    assert text.startswith("# SERIAL program, level GUARDED, 2 graph(s)")
    for module in program.graphs:
        for node in module.graph.nodes:
            assert node.op == "output" or f"    {node.name} = " in text
