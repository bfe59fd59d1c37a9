import pytest
import torch
from torch import fx, nn

from hybridiff_compile.errors import UnsupportedPipelineError
from hybridiff_compile.ir import Phase, RankContract, RankProgram
from hybridiff_compile.lower.device import device_of, retarget
from tests import toy

CPU, CUDA_0, CUDA_1 = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)


def program_that_makes_tensors() -> RankProgram:
    """A graph and a child that name devices in args and kwargs; it is built, never run."""
    child = fx.Graph()
    zeros = child.call_function(torch.zeros, ([2],), {"device": CUDA_0})
    child.output(zeros)
    root = nn.Module()
    root.add_module("child", fx.GraphModule({}, child))
    graph = fx.Graph()
    x = graph.placeholder("x")
    moved = graph.call_function(torch.ops.aten.to.device, (x, CUDA_0, torch.float32))
    made = graph.call_function(torch.zeros, ([2],), {"device": CPU})
    graph.output({"moved": moved, "made": made, "child": graph.call_module("child", ())})
    contract = RankContract(inputs=("x",), results=("moved", "made", "child"))
    return RankProgram(Phase.SERIAL, 1, contract, fx.GraphModule(root, graph), {})


def devices(module: nn.Module) -> list[torch.device]:
    assert isinstance(module, fx.GraphModule)
    values = [v for n in module.graph.nodes for v in (*n.args, *n.kwargs.values())]
    return [v for v in values if isinstance(v, torch.device)]


def test_other_devices_become_the_ranks_own_and_the_cpu_stays():
    program = retarget(program_that_makes_tensors(), CUDA_1)
    assert devices(program.module) == [CUDA_1, CPU]
    assert devices(program.module.get_submodule("child")) == [CUDA_1]
    assert "device(type='cuda', index=1)" in program.module.code


def test_cpu_rank_keeps_its_program():
    program = RankProgram.of(toy.guarded(), 1)
    before = program.module.code
    assert retarget(program, CPU) is program
    assert program.module.code == before


def test_device_of_a_denoiser():
    assert device_of(nn.Linear(2, 2)) == CPU
    assert device_of(nn.Linear(2, 2, device="meta")) == torch.device("meta")


def test_denoiser_without_parameters_is_refused():
    with pytest.raises(UnsupportedPipelineError, match=r"the denoiser, a Identity, has no param"):
        device_of(nn.Identity())
