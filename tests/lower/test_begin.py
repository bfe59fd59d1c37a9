"""Who compiles what and when: the compiler is stood in for, so that its calls are seen."""

from typing import Any

import pytest
import torch
from torch import fx, nn

from hybridiff_compile import lower
from hybridiff_compile.config import Lowering, Scope
from hybridiff_compile.ir import Phase, RankProgram
from hybridiff_compile.lower import inductor, prepare
from hybridiff_compile.lower.flat import Compiled, Flat
from tests.lower import embedded
from tests.lower.graphs import chain, layer

CPU = torch.device("cpu")
EAGER, STAGE = Lowering("eager"), Lowering("inductor")
REGIONAL, WHOLE = Lowering("inductor", "regional"), Lowering("inductor", "whole")


@pytest.fixture
def compiled(monkeypatch) -> list[Flat]:
    """What the compiler was given, in order; the graphs themselves run in its place."""
    given: list[Flat] = []

    def compile_flat(flat: Flat, *args: Any, **kwargs: Any) -> Any:
        given.append(flat)
        return flat.module

    monkeypatch.setattr(inductor, "compile_flat", compile_flat)
    return given


def parts_of(program: RankProgram) -> dict[str, nn.Module]:
    return dict(program.module.named_children())


def test_eager_variants_are_the_programs_and_nothing_is_compiled(compiled):
    programs = embedded.case("toy").programs(rank=0)
    variants = lower.begin(programs, EAGER, CPU)()
    assert [v.call for v in variants] == [p.module for p in programs]
    assert not compiled


def test_each_rank_compiles_its_share_first_and_both_shares_are_everything(compiled):
    parts = [layer(seed=0, rows=rows) for rows in (2, 3, 4)]
    shares = []
    for rank in (0, 1):
        compiled.clear()
        finish = lower.begin([chain(p, rank=rank) for p in parts], STAGE, CPU)
        shares.append([f.key for f in compiled])
        assert len(finish()) == 3
        assert len({f.key for f in compiled}) == len(compiled) == 3
    # Of one size: the first to rank 0, the second to rank 1, the third to rank 0 again.
    assert [len(s) for s in shares] == [2, 1]
    assert not set(shares[0]) & set(shares[1])


def test_one_rank_alone_compiles_everything_first(compiled):
    finish = lower.begin([chain(layer(seed=0)), chain(layer(seed=0, rows=3))], STAGE, CPU, ranks=1)
    assert len(compiled) == 2
    finish()
    assert len(compiled) == 2


def test_equal_parts_are_compiled_once_and_run_with_their_own_weights(compiled):
    program = chain(*(layer(seed=s) for s in range(3)))
    (variant,) = lower.begin([program], STAGE, CPU)()
    assert len(compiled) == 1
    assert isinstance(variant.call, nn.Module)
    assert [type(m) for m in variant.call.children()] == [Compiled] * 3
    x = torch.randn(2, 4)
    with torch.no_grad():
        assert torch.equal(variant.call(x)["y"], program.module(x)["y"])


def test_progress_is_told_of_every_part_as_it_begins(compiled):
    told: list[tuple[str, int]] = []
    finish = lower.begin(
        [chain(layer(seed=0), layer(seed=1)), chain(layer(seed=0, rows=3))],
        STAGE,
        CPU,
        tell=lambda text: told.append((text, len(compiled))),
    )
    finish()
    assert sorted(text for text, _ in told) == [f"compiling part {i} of 2" for i in (1, 2)]
    assert [done for _, done in told] == [0, 1]


@pytest.mark.parametrize("rank", [0, 1])
def test_phases_share_their_compiled_stages(rank, compiled):
    programs = embedded.case("toy").programs(rank)
    serial, pipelined, drained = lower.begin(programs, STAGE, CPU)()
    assert len(compiled) == 2
    assert (serial.phase, pipelined.phase) == (Phase.SERIAL, Phase.PIPELINED)
    assert isinstance(serial.call, nn.Module)
    assert isinstance(pipelined.call, nn.Module)
    stage = f"stage{rank}"
    assert isinstance(serial.call.get_submodule(stage), Compiled)
    assert pipelined.call.get_submodule(stage) is serial.call.get_submodule(stage)
    assert isinstance(drained.call, nn.Module)
    inside = {"stage1": serial.call.get_submodule("stage1"), "unpack": None} if rank else {}
    assert dict(drained.call.named_children()).keys() == inside.keys()
    assert not rank or drained.call.get_submodule("stage1") is inside["stage1"]
    # The programs are as they were.
    assert all(isinstance(parts_of(p)[stage], fx.GraphModule) for p in programs[:2])


def test_whole_steps_are_the_ranks_own(compiled):
    programs = embedded.case("toy").programs(rank=1)
    finish = lower.begin(programs, WHOLE, CPU)
    assert len(compiled) == 3
    variants = finish()
    assert len(compiled) == 3
    assert [type(v.call) for v in variants] == [Compiled] * 3


def test_prepare_outlines_only_where_it_is_asked_for():
    programs = embedded.case("tiny-sd3").programs(rank=0)
    for how in (EAGER, STAGE, WHOLE):
        assert prepare(programs, how) == programs
    ready = prepare(programs, REGIONAL)
    for before, after in zip(programs, ready, strict=True):
        assert (before.phase, before.contract) == (after.phase, after.contract)
    for before, after in zip(programs[:2], ready, strict=False):  # drained, rank 0 has no stage
        assert not hasattr(before.module.get_submodule("stage0"), "block0")
        assert isinstance(after.module.get_submodule("stage0.block0"), fx.GraphModule)
    assert ready[0].module.get_submodule("stage0") is ready[1].module.get_submodule("stage0")


def test_regional_compiles_each_distinct_block_once_and_gives_the_same_bits(compiled):
    case = embedded.case("tiny-sd3")
    programs = prepare(case.programs(rank=0), REGIONAL)
    stage = programs[0].module.get_submodule("stage0")
    serial, *_ = lower.begin(programs, REGIONAL, CPU)()
    blocks = [m for m in stage.children() if isinstance(m, fx.GraphModule)]
    assert (
        0
        < len(compiled)
        < len(blocks) + len([m for m in programs[0].module.get_submodule("stage1").children()])
    )
    assert len({f.key for f in compiled}) == len(compiled)
    assert isinstance(serial.call, nn.Module)
    lowered = serial.call.get_submodule("stage0")
    assert isinstance(lowered.get_submodule("block0"), Compiled)
    inputs = case.inputs(case.stages[0]).values()
    with torch.no_grad():
        for a, b in zip(lowered(*inputs), case.stages[0](*inputs), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("scope", ["stage", "regional", "whole"])
def test_linked_kernels_are_asked_for_where_links_are_inside(scope: Scope, monkeypatch):
    asked = []

    def compile_flat(flat: Flat, *args: Any, linked: bool) -> Any:
        asked.append((args, linked))
        return flat.module

    monkeypatch.setattr(inductor, "compile_flat", compile_flat)
    how = Lowering("inductor", scope, "max-autotune-no-cudagraphs")
    program = chain(layer(seed=0))
    if scope == "regional":
        graph = fx.Graph()
        x = graph.placeholder("x")
        x.meta["val"] = torch.zeros(2, 4)
        graph.output(graph.call_module("block0", (x,)))
        program = chain(fx.GraphModule({"block0": layer(seed=0)}, graph))
    lower.begin([program], how, CPU)()
    assert asked == [((CPU, "max-autotune-no-cudagraphs"), scope == "whole")]


@pytest.mark.parametrize(
    ("mode", "device", "marks"),
    [
        ("reduce-overhead", "cuda", 1),
        ("max-autotune-no-cudagraphs", "cuda", 0),
        (None, "cuda", 0),
        ("reduce-overhead", "cpu", 0),
    ],
)
def test_cuda_graphs_are_told_of_each_step(mode, device, marks, compiled, monkeypatch):
    marked = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marked.append(1))
    how, x = Lowering("inductor", compile_mode=mode), torch.randn(2, 4)
    program = chain(layer(seed=1))
    (variant,) = lower.begin([program], how, torch.device(device))()
    for step in (1, 2):
        assert torch.equal(variant.call(x)["y"], program.module(x)["y"])
        assert len(marked) == step * marks


def test_warming_asks_for_no_cuda_graphs(monkeypatch):
    modes = []
    monkeypatch.setattr(
        inductor, "compile_flat", lambda flat, device, mode, **_: modes.append(mode)
    )
    lower.warm(Lowering("inductor", compile_mode="reduce-overhead"), CPU)
    assert modes == [None]
