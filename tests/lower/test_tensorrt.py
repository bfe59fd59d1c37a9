"""Everything up to torch-tensorrt's compiler, which needs a card: a module stands in for it."""

import importlib.machinery
import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from hybridiff_compile import lower
from hybridiff_compile.config import Lowering
from hybridiff_compile.errors import BackendError
from hybridiff_compile.lower import tensorrt
from hybridiff_compile.lower.flat import Compiled, flatten
from hybridiff_compile.runtime import numerics
from tests.lower import embedded, graphs

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 1)


class Recorder(ModuleType):
    """A `torch_tensorrt` that notes what it is given and hands back the program itself."""

    def __init__(self, bare: bool) -> None:
        super().__init__("torch_tensorrt")
        self.__spec__ = importlib.machinery.ModuleSpec("torch_tensorrt", None)
        self.given: list[tuple[Any, Any, dict[str, Any]]] = []
        self.dynamo = SimpleNamespace(compile=self.compile)
        self.bare = bare

    def compile(self, program: Any, *, arg_inputs: Any, **settings: Any) -> Any:
        self.given.append((program, arg_inputs, settings))
        engine = program.module()
        if not self.bare:
            return engine
        return lambda *args: r[0] if len(r := engine(*args)) == 1 else r


@pytest.fixture(params=[False, True], ids=["tuple", "bare"])
def recorder(request, monkeypatch) -> Recorder:
    """A machine where torch-tensorrt is installed and the CPU passes for a card."""
    module = Recorder(request.param)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", module)
    monkeypatch.setattr(tensorrt, "check", lambda device: None)
    return module


def test_stages_are_given_as_static_programs_without_links(recorder):
    case = embedded.case("toy")
    for part in case.stages:
        tensorrt.compile_flat(flatten(part), CPU)
    for part, (program, inputs, _) in zip(case.stages, recorder.given, strict=True):
        flat = flatten(part)
        shapes = [(t.shape, t.stride(), t.dtype) for t in inputs]
        assert shapes == [(s.shape, s.stride(), s.dtype) for s in flat.specs]
        assert all(isinstance(size, int) for t in inputs for size in t.shape)
        assert not program.range_constraints
        targets = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
        assert targets
        assert all(t.startswith("aten.") for t in targets)
        assert set(program.state_dict) == set(flat.weights)
        for name, value in zip(flat.weights, flat.values, strict=True):
            assert torch.equal(program.state_dict[name], value)


def test_engine_gives_the_stage_s_results(recorder):
    case = embedded.case("toy")
    features: Any = None
    for part in case.stages:
        flat = flatten(part)
        compiled = Compiled(tensorrt.compile_flat(flat, CPU), flat.keys, flat.values)
        args = [*([] if features is None else [features]), *case.inputs(part).values()]
        with torch.no_grad():
            expected, result = part(*args), compiled(*args)
        several = isinstance(expected, tuple)
        for a, b in zip(
            result if several else [result], expected if several else [expected], strict=True
        ):
            assert torch.equal(a, b)
        features = expected


def test_every_stage_gets_one_engine_which_the_phases_share(recorder):
    case = embedded.case("toy")
    serial, pipelined, _ = lower.begin(case.programs(rank=1), Lowering("tensorrt"), CPU)()
    assert len(recorder.given) == 2
    assert isinstance(serial.call, nn.Module)
    assert isinstance(pipelined.call, nn.Module)
    assert pipelined.call.get_submodule("stage1") is serial.call.get_submodule("stage1")


def test_equal_stages_of_other_weights_share_no_engine(recorder):
    parts = graphs.layer(seed=1), graphs.layer(seed=2)
    assert flatten(parts[0]).key == flatten(parts[1]).key
    program = graphs.chain(*parts)
    (variant,) = lower.begin([program], Lowering("tensorrt"), CPU)()
    assert len(recorder.given) == 2
    x = torch.randn(2, 4)
    assert torch.equal(variant.call(x)["y"], program.module(x)["y"])


@pytest.mark.parametrize(("precision", "disabled"), [("highest", True), ("high", False)])
def test_settings_follow_the_process(precision, disabled):
    before = numerics.current()
    torch.set_float32_matmul_precision(precision)
    try:
        settings = tensorrt.settings(CUDA)
    finally:  # not by torch's own setter, which leaves "ieee" where it found "none"
        numerics.apply(before)
    assert settings == {
        "device": CUDA,
        "disable_tf32": disabled,
        "min_block_size": 1,
        "truncate_double": True,
        "attn_bias_is_causal": False,
    }


def test_settings_reach_the_compiler(recorder):
    tensorrt.compile_flat(flatten(embedded.case("toy").stages[0]), CPU)
    ((_, _, settings),) = recorder.given
    assert settings == tensorrt.settings(CPU)


def test_pipeline_on_the_cpu_is_refused():
    with pytest.raises(BackendError, match=r"on cpu; move it there with pipe.to\('cuda'\)"):
        tensorrt.check(CPU)


def test_missing_package_is_refused_with_its_install_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"pip install hybridiff-compile\[tensorrt\]"):
        tensorrt.check(CUDA)


def test_card_and_package_are_enough(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_tensorrt", Recorder(bare=False))
    tensorrt.check(CUDA)


def test_compiler_is_not_reached_without_a_card():
    with pytest.raises(BackendError, match="needs an NVIDIA GPU"):
        tensorrt.compile_flat(flatten(embedded.case("toy").stages[0]), CPU)
