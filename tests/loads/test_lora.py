"""A LoRA and a ControlNet in one pipeline, loaded, set, fused and dropped after `optimize`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLControlNetPipeline, StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_diffusers

import hybridiff_compile
from hybridiff_compile import adapters
from tests.loads import switches
from tests.loads.switches import apart, make

peft = pytest.importorskip("peft")


def save_lora(folder: Path, seed: int) -> Path:
    """A LoRA of the UNet's attention with random weights, as a file on disk."""
    unet = switches.sdxl().unet
    unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v", "to_k"]))
    generator = torch.Generator().manual_seed(seed)
    state = peft.get_peft_model_state_dict(unet)
    state = {n: torch.randn(t.shape, generator=generator) / 2 for n, t in state.items()}
    layers = convert_state_dict_to_diffusers(state)
    StableDiffusionXLPipeline.save_lora_weights(folder, unet_lora_layers=layers)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("controlled", [False, True], ids=["alone", "controlled"])
def test_every_form_of_a_lora(
    controlled: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = [save_lora(tmp_path / name, seed) for seed, name in enumerate(("first", "second"))]

    def build() -> Any:
        pipe = switches.sdxl()
        if not controlled:
            return pipe
        net = switches.control_net(pipe)
        kind = StableDiffusionXLControlNetPipeline
        return kind(**pipe.components, controlnet=net, add_watermarker=False)

    pipe, plain = build(), build()
    call = {"image": switches.picture()} if controlled else {}
    forms = {
        "loaded": lambda p: p.load_lora_weights(files[0], adapter_name="first"),
        "scaled": lambda p: p.set_adapters("first", 0.5),
        "scaled by blocks": lambda p: p.set_adapters("first", {"unet": {"up": 0.2, "down": 1.0}}),
        "another": lambda p: p.load_lora_weights(files[1], adapter_name="second"),
        "both": lambda p: p.set_adapters(["first", "second"], [0.7, 0.3]),
        "disabled": lambda p: p.disable_lora(),
        "enabled": lambda p: p.enable_lora(),
        "fused": lambda p: p.fuse_lora(),
        "unfused": lambda p: p.unfuse_lora(),
        "deleted": lambda p: p.delete_adapters("second"),
        "unloaded": lambda p: p.unload_lora_weights(),
    }
    new = {"loaded", "another", "both"}  # all others are states that there were before
    caplog.set_level("INFO")
    seen = [apart(plain, **call)]
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        assert torch.equal(make(model, **call), seen[0])
        for name, change in forms.items():
            for each in (pipe, plain):
                change(each)
            expected = apart(plain, **call)
            caplog.clear()
            assert torch.equal(make(model, **call), expected), name
            assert model.report.ranks == 2
            captured = [r.message.startswith("captured ") for r in caplog.records].count(True)
            assert captured == (name in new), name
            moved = (expected - seen[-1]).abs().max()
            assert name in ("fused", "unfused") or moved > 1e-3, name
            seen.append(expected)
    assert (seen[-1] - seen[0]).abs().max() < 1e-3  # to fuse and to unfuse rounds the weights


def test_another_scale_is_captured_no_second_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = save_lora(tmp_path, 0)
    pipe, plain = switches.sdxl(), switches.sdxl()
    for each in (pipe, plain):
        each.load_lora_weights(file, adapter_name="first")
    caplog.set_level("INFO")
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        seen = []
        for scale in (1.0, 0.3, {"unet": {"up": 0.2, "down": 1.0}}, 1.0):
            for each in (pipe, plain):
                each.set_adapters("first", scale)
            seen.append(apart(plain))
            assert torch.equal(make(model), seen[-1])
            assert model.report.ranks == 2
    assert torch.equal(seen[0], seen[3])
    assert (seen[0] - seen[1]).abs().max() > 1e-3
    assert [r.message.startswith("captured ") for r in caplog.records].count(True) == 1
    assert all(
        type(n) is float for m in pipe.unet.modules() for n in getattr(m, "scaling", {}).values()
    )


def test_one_device_holds_the_scale_of_now(tmp_path: Path) -> None:
    pipe = switches.sdxl()
    pipe.load_lora_weights(save_lora(tmp_path, 0), adapter_name="first")
    with hybridiff_compile.optimize(pipe, 1, mode="exact") as model:
        make(model)
        held = next(iter(adapters.tensors(pipe.unet).values()))  # as a program of it has it
        pipe.set_adapters("first", 0.25)
        make(model)
        assert held.item() == 0.25


def test_scale_of_a_call_and_a_lora_loaded_before(tmp_path: Path) -> None:
    file = save_lora(tmp_path, 0)
    pipe, plain = switches.sdxl(), switches.sdxl()
    for each in (pipe, plain):
        each.load_lora_weights(file)
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        for scale in (1.0, 0.3):
            call = {"cross_attention_kwargs": {"scale": scale}}
            assert torch.equal(make(model, **call), apart(plain, **call))
            assert model.report.ranks == 2
