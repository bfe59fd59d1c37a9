import torch
from torch import fx, nn

from hybridiff_compile.ir import Phase
from hybridiff_compile.lower.compose import children, compose, parts, replace
from tests.lower import embedded
from tests.lower.graphs import chain, layer


class Negative(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -x


def test_parts_of_a_whole_step_are_the_programs():
    programs = embedded.case("toy").programs(rank=0)
    assert parts(programs, "whole") == [p.module for p in programs]


def test_parts_of_the_stage_scope_are_the_stages_once_in_the_order_of_their_use():
    serial, pipelined, _ = embedded.case("toy").programs(rank=1)
    stages = [serial.module.get_submodule(n) for n in ("stage0", "stage1")]
    assert parts([serial, pipelined], "stage") == stages
    assert parts([pipelined, serial], "stage") == stages[::-1]
    assert parts([pipelined], "stage") == stages[1:]


def test_part_of_an_exact_program_is_the_denoiser():
    (serial,) = embedded.case("toy").programs(rank=0, mode="exact")
    assert parts([serial], "stage") == [serial.module.get_submodule("denoiser")]


def test_parts_of_the_regional_scope_are_the_graphs_inside_the_stages():
    inner = layer(seed=0)
    graph = fx.Graph()
    graph.output(graph.call_module("block0", (graph.placeholder("x"),)))
    next(iter(graph.nodes)).meta["val"] = torch.zeros(2, 4)
    outer = fx.GraphModule({"block0": inner, "other": nn.Identity()}, graph)
    assert parts([chain(outer, layer(seed=1))], "regional") == [inner]


def test_parts_come_in_the_order_of_their_calls_whatever_that_of_the_attributes():
    first, second = layer(seed=0), layer(seed=1)
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_module("block1", (graph.call_module("block0", (x,)),)))
    module = fx.GraphModule({"block0": first, "block1": second}, graph)
    assert children(module) == [first, second]
    module.delete_submodule("block0")
    module.add_submodule("block0", first)
    assert list(module.children()) == [second, first]
    assert children(module) == [first, second]


def test_replace_exchanges_a_part_and_leaves_its_input_alone():
    first, second = layer(seed=1), layer(seed=2)
    module = chain(first, second).module
    x = torch.randn(2, 4)
    before = module(x)["y"]
    copy = replace(module, {second: Negative()})
    assert torch.equal(copy(x)["y"], -first(x))
    assert module.get_submodule("stage1") is second
    assert torch.equal(module(x)["y"], before)


def test_replace_shares_the_copies_of_what_programs_share():
    inner = layer(seed=0)
    graph = fx.Graph()
    graph.output(graph.call_module("block0", (graph.placeholder("x"),)))
    next(iter(graph.nodes)).meta["val"] = torch.zeros(2, 4)
    stage = fx.GraphModule({"block0": inner}, graph)
    by: dict[nn.Module, nn.Module] = {inner: Negative()}
    one, two = (replace(chain(stage, other).module, by) for other in (layer(1), layer(2)))
    shared = one.get_submodule("stage0")
    assert shared is two.get_submodule("stage0")
    assert shared is not stage
    assert isinstance(shared.get_submodule("block0"), Negative)
    assert by[stage] is shared


def test_composed_variants_keep_the_contract_and_share_what_was_made():
    part = layer(seed=0)
    programs = [chain(part), chain(part, layer(seed=1), phase=Phase.PIPELINED)]
    made = Negative()
    variants = compose(programs, {part: made})
    for variant, program in zip(variants, programs, strict=True):
        assert (variant.phase, variant.contract) == (program.phase, program.contract)
        assert variant.specs is program.specs
        assert isinstance(variant.call, fx.GraphModule)
        assert variant.call.get_submodule("stage0") is made
        assert program.module.get_submodule("stage0") is part
