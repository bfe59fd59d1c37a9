"""Scales of adapters: a program takes them as tensors, and rounds as it does with the numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hybridiff_compile import adapters
from hybridiff_compile.capture.call import DenoiserCall
from hybridiff_compile.capture.exporting import export
from hybridiff_compile.capture.fingerprint import Watch

peft = pytest.importorskip("peft")


class Denoiser(nn.Module):
    """Two layers; its scale may be given with a call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Conv2d(2, 2, 1)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> tuple[torch.Tensor]:
        layers: list[Any] = [m for m in self.modules() if hasattr(m, "scale_layer")]
        for layer in layers:
            layer.scale_layer(scale)
        y = self.second(self.first(x))
        for layer in layers:
            layer.unscale_layer(scale)
        return (y,)


def denoiser(dtype: torch.dtype = torch.float32, **how: Any) -> Any:
    torch.manual_seed(0)
    made = Denoiser().eval()
    for name in ("a", "b"):
        config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["first", "second"], **how)
        made = peft.inject_adapter_in_model(config, made, name)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    for layer in (made.first, made.second):
        layer.set_adapter(["a", "b"])
    return made.to(dtype)


def call(dtype: torch.dtype, **more: Any) -> DenoiserCall:
    generator = torch.Generator().manual_seed(1)
    return DenoiserCall.of(("x",), (torch.randn(3, 2, 8, 8, generator=generator).to(dtype),), more)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", [{}, {"scale": 0.3}], ids=["", "a scale of the call"])
@torch.no_grad()
def test_one_graph_has_the_bits_of_every_scale(dtype, given):
    module, of = denoiser(dtype), call(dtype, **given)
    graph, _ = export(module, of)
    for scale in (1.5, 0.1, 1 / 3, -2.0):
        for name in ("a", "b"):
            module.first.set_scale(name, scale)
            module.second.set_scale(name, scale / 7)
        adapters.tensors(module)
        (expected,) = of.given_to(module)
        assert torch.equal(graph(*of.tensors().values()), expected)


def test_the_numbers_are_as_they_were_after_an_export():
    module = denoiser()
    before = dict(module.first.scaling)
    export(module, call(torch.float32, scale=0.5))
    assert module.first.scaling == before == {"a": 1.5, "b": 1.5}
    with adapters.as_tensors(module):
        assert type(module.first.scaling["a"]) is not float
    assert module.first.scaling == before
    assert type(module.first.scaling["a"]) is float


def test_a_scale_is_no_structure_and_its_tensor_stays_the_same_one():
    module = denoiser()
    before, held = Watch(module), adapters.tensors(module)
    assert held.keys() == {f"{m}.scaling.{a}" for m in ("first", "second") for a in "ab"}
    module.first.set_scale("b", 0.25)
    now = Watch(module)
    assert not before.holds()
    assert (before.form, before.structure) == (now.form, now.structure)
    assert before.value != now.value
    assert held["first.scaling.b"].item() == 1.5  # a look changes nothing
    assert all(tensor is held[name] for name, tensor in adapters.tensors(module).items())
    assert held["first.scaling.b"].item() == 0.25 * 3 / 2
    module.first.set_adapter(["a"])
    assert Watch(module).structure != now.structure


def test_layers_that_compute_otherwise_with_a_scale_keep_it_as_a_number():
    module = denoiser(use_dora=True)
    assert adapters.tensors(module) == {}
    before = Watch(module)
    module.first.set_scale("b", 0.25)
    assert Watch(module).structure != before.structure


def test_scales_that_are_tensors_already_are_weights():
    from peft.utils.hotswap import prepare_model_for_compiled_hotswap

    module = denoiser()
    prepare_model_for_compiled_hotswap(module)
    own = module.first.scaling["a"]
    assert adapters.tensors(module)["first.scaling.a"] is own
    before = Watch(module)
    own.fill_(0.5)
    assert not before.holds()
    assert Watch(module).structure == before.structure
    graph, _ = export(module, of := call(torch.float32))
    own.fill_(0.2)
    with torch.no_grad():
        assert torch.equal(graph(*of.tensors().values()), of.given_to(module)[0])


def states(module: Any) -> dict[str, Any]:
    """Changes of which each but the first two gives what there was before."""
    both = [module.first, module.second]

    def each(what: str, *args: Any) -> Any:
        return lambda: [getattr(layer, what)(*args) for layer in both]

    return {
        "one": each("set_adapter", ["a"]),
        "two": each("set_adapter", ["a", "b"]),
        "off": each("enable_adapters", False),
        "on": each("enable_adapters", True),
        "merged": each("merge"),
        "unmerged": each("unmerge"),
        "other": each("set_adapter", ["b"]),
        "other order": each("set_adapter", ["b", "a"]),
        "again": each("set_adapter", ["a"]),
    }


def test_a_layer_is_what_it_computes_with():
    module = denoiser()
    plain = {"first": module.first.base_layer, "second": module.second.base_layer}
    seen = {
        name: Watch(module).structure
        for name, change in states(module).items()
        if not change() or 1
    }
    assert seen["off"] == seen["merged"]
    assert seen["two"] == seen["on"] == seen["unmerged"]
    assert seen["one"] == seen["again"]
    assert len({seen[n] for n in ("one", "two", "off", "other", "other order")}) == 5
    for name, layer in plain.items():
        setattr(module, name, layer)
    assert Watch(module).structure == seen["off"]


@pytest.mark.parametrize("name", ["one", "off", "merged", "other"])
def test_every_change_of_a_layer_is_seen(name):
    module = denoiser()
    watch = Watch(module)
    assert watch.holds()
    states(module)[name]()
    assert not watch.holds()


def test_a_layer_with_a_hook_is_what_it_has():
    module = denoiser()
    module.first.enable_adapters(False)
    before = Watch(module)
    module.first.register_forward_hook(lambda layer, args, result: 2 * result)
    assert not before.holds()
    assert Watch(module).structure != before.structure
