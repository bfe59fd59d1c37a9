import pytest
import torch
from torch import fx, nn

from hybridiff_compile import ops
from hybridiff_compile.ir import Phase, RankProgram
from hybridiff_compile.passes import build_programs
from hybridiff_compile.runtime import transfer
from tests import toy


@pytest.fixture(scope="module")
def programs() -> dict[Phase, RankProgram]:
    built = build_programs(toy.captured().program, "paper")
    return {phase: RankProgram.of(program, 1) for phase, program in built.items()}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    denoiser = toy.captured().program.graphs[0].get_submodule("denoiser")
    return dict((*denoiser.named_parameters(), *denoiser.named_buffers()))


def round_trip(value: object, weights: dict[str, torch.Tensor]) -> list[RankProgram]:
    names = {id(tensor): name for name, tensor in weights.items()}
    return transfer.load(transfer.dump(value, names), weights)


def children(program: RankProgram) -> dict[str, fx.GraphModule]:
    named = program.module.named_modules()
    return {n: m for n, m in named if isinstance(m, fx.GraphModule)}


def test_programs_arrive_with_the_same_code(programs, weights):
    for before, after in zip(
        programs.values(), round_trip(list(programs.values()), weights), strict=True
    ):
        assert children(before).keys() == children(after).keys()
        for name, child in children(before).items():
            assert children(after)[name].code == child.code
            assert str(children(after)[name].graph) == str(child.graph)
        assert (before.phase, before.rank, before.contract) == (
            after.phase,
            after.rank,
            after.contract,
        )
        assert list(before.specs) == list(after.specs)
        for name, spec in before.specs.items():
            arrived = after.specs[name]
            assert arrived.device.type == "meta"
            assert (arrived.shape, arrived.dtype) == (spec.shape, spec.dtype)
            assert arrived.stride() == spec.stride()


def test_stages_that_arrive_compute_the_same_bits(programs, weights):
    (after,) = round_trip([programs[Phase.SERIAL]], weights)
    call = toy.call_of(seed=3).branch(1).tensors()
    outputs = []
    for program in (programs[Phase.SERIAL], after):
        stage0 = program.module.get_submodule("stage0")
        stage1 = program.module.get_submodule("stage1")
        with torch.no_grad():
            features = stage0(*call.values())
            outputs.append(stage1(features, *(v for n, v in call.items() if n != "sample")))
    assert torch.equal(*outputs)


def test_unpacking_that_arrives_has_the_same_layout(programs, weights):
    (after,) = round_trip([programs[Phase.PIPELINED]], weights)
    buffer = torch.arange(4096, dtype=torch.int64).to(torch.uint8)
    for a, b in zip(
        programs[Phase.PIPELINED].module.get_submodule("unpack")(buffer),
        after.module.get_submodule("unpack")(buffer),
        strict=True,
    ):
        assert torch.equal(a.view(torch.int32), b.view(torch.int32))
        assert a.stride() == b.stride()


def test_weights_that_arrive_are_those_of_the_receiving_process(programs, weights):
    names = {id(tensor): name for name, tensor in weights.items()}
    here = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    (after,) = transfer.load(transfer.dump([programs[Phase.SERIAL]], names), here)
    stage1 = after.module.get_submodule("stage1")
    assert stage1.get_submodule("up").weight is here["up.weight"]
    assert stage1.get_submodule("conv_out").bias is here["conv_out.bias"]


def test_weights_do_not_travel():
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(1000, 1000)

        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            return self.linear(sample)

    module = fx.symbolic_trace(Large())
    graph = fx.Graph()
    weight, bias = graph.get_attr("linear.weight"), graph.get_attr("linear.bias")
    x = graph.placeholder("x")
    graph.output(graph.call_function(torch.ops.aten.linear.default, (x, weight, bias)))
    flat = fx.GraphModule(module, graph)
    names = {id(p): n for n, p in flat.named_parameters()}
    data = transfer.dump(flat, names)
    assert len(data) < 4000
    x = torch.randn(2, 1000)
    loaded = transfer.load(data, dict(flat.named_parameters()))
    assert torch.equal(loaded(x), flat(x))


def test_tensor_that_was_not_published_travels_by_value(weights):
    graph = fx.Graph()
    graph.output(graph.get_attr("constant"))
    module = fx.GraphModule({"constant": torch.arange(3.0)}, graph)
    assert torch.equal(transfer.load(transfer.dump(module, {}), weights)(), torch.arange(3.0))


def test_loading_runs_no_receive(programs, weights, monkeypatch):
    monkeypatch.setattr(ops._active, "groups", {}, raising=False)  # a receive that ran would raise
    targets = {n.target for n in programs[Phase.PIPELINED].module.graph.nodes}
    assert ops.RECV in targets
    (after,) = round_trip([programs[Phase.PIPELINED]], weights)
    assert {n.target for n in after.module.graph.nodes} == targets


def test_writing_leaves_the_programs_as_they_were(programs, weights):
    before = str(programs[Phase.SERIAL].module.graph)
    round_trip(list(programs.values()), weights)
    assert str(programs[Phase.SERIAL].module.graph) == before
