"""One denoiser in several pipelines, and another denoiser in the place of the first."""

from __future__ import annotations

import copy
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from diffusers import (
    MultiAdapter,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.models import MultiControlNetModel
from torch import nn

import hybridiff_compile
from hybridiff_compile.errors import ConfigError
from tests.loads import switches
from tests.loads.switches import apart, make


def twin(pipe: Any) -> Any:
    """Another pipeline of the same parts."""
    other = StableDiffusionXLPipeline(**pipe.components, add_watermarker=False)
    other.set_progress_bar_config(disable=True)
    return other


def test_pipelines_of_one_denoiser_share_its_weights_and_take_turns() -> None:
    plain, first = switches.sdxl(), switches.sdxl()
    expected, own_class = apart(plain), type(first)
    one = hybridiff_compile.optimize(first, mode="exact")
    assert torch.equal(make(one), expected)
    second = twin(first)
    assert torch.equal(make(second), make(twin(plain)))  # not optimized: one device's own
    other = hybridiff_compile.optimize(second, mode="exact")
    address = first.unet.conv_in.weight.data_ptr()
    captured = one.programs()
    assert torch.equal(make(other), expected)
    assert first.unet.conv_in.weight.data_ptr() == address  # published once
    assert torch.equal(make(one), expected)
    assert one.programs() == captured  # the other one's capture changed nothing here
    with ThreadPoolExecutor(2) as threads:
        jobs = [threads.submit(make, m, seed=s) for s in range(2) for m in (one, other)]
        made = [job.result(60) for job in jobs]
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[2], made[3])
    assert torch.equal(made[2], apart(plain, seed=1))
    assert one.restore() is first  # the first one in goes out first
    assert torch.equal(make(other), expected)
    assert (other.report.ranks, type(first)) == (2, own_class)
    assert other.restore() is second
    assert "forward" not in vars(first.unet)
    assert torch.equal(apart(first), expected)


@pytest.mark.slow
def test_a_change_through_one_pipeline_is_seen_by_the_other() -> None:
    plain, first = switches.sdxl(), switches.sdxl()
    second = twin(first)
    with (
        hybridiff_compile.optimize(first, mode="exact") as one,
        hybridiff_compile.optimize(second, mode="exact") as other,
    ):
        before = make(one), make(other)
        for pipe in (first, plain):
            pipe.enable_freeu(0.9, 0.2, 1.2, 1.4)
            with torch.no_grad():
                pipe.unet.conv_out.weight.mul_(0.5)
        expected = apart(plain)
        assert torch.equal(make(other), expected)
        assert torch.equal(make(one), expected)
        assert not torch.equal(expected, before[0])


def test_a_call_from_a_callback_of_a_pipeline_with_the_same_denoiser_is_refused() -> None:
    first = switches.sdxl()
    second = twin(first)
    with (
        hybridiff_compile.optimize(first, gpus=1) as one,
        hybridiff_compile.optimize(second, gpus=1) as other,
    ):

        def call(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
            with pytest.raises(ConfigError, match="from that of a pipeline with the same denoiser"):
                make(other)
            return values

        make(one, callback_on_step_end=call)
        make(other)


def test_a_denoiser_put_in_the_place_of_the_first_is_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pipe, plain = switches.sd3(), switches.sd3()
    first, second = pipe.transformer, switches.noisy(copy.deepcopy(pipe.transformer), 3)
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        make(model)
        for change in (
            lambda p, d: setattr(p, "transformer", d),
            lambda p, d: p.register_modules(transformer=d),
        ):
            for denoiser in (second, first):
                for each in (pipe, plain):
                    change(each, copy.deepcopy(denoiser) if each is plain else denoiser)
                assert torch.equal(make(model), apart(plain))
                assert model.report.ranks == 2
        assert "forward" not in vars(second)
        pipe.transformer = torch.compile(second)
        with caplog.at_level(logging.WARNING, "hybridiff_compile"):
            pipe.transformer = _Hooked(second)
            plain.transformer = _Hooked(copy.deepcopy(second))
            assert (make(model) - make(plain)).abs().max() < 1e-3
        assert model.report.ranks == 1
        assert "one rank runs this pipeline: the denoiser is compiled" in caplog.text
        pipe.transformer = first
    assert "forward" not in vars(first)


class _Hooked(nn.Module):
    """Looks as a module compiled by torch.compile does, and computes what it holds."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("_orig_mod"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._orig_mod(*args, **kwargs)


@pytest.mark.parametrize("nets", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_control_nets(nets: int) -> None:
    def build() -> Any:
        pipe = switches.sdxl()
        found = [switches.control_net(pipe, seed) for seed in range(nets)]
        net: Any = MultiControlNetModel(found) if nets > 1 else found[0]
        return StableDiffusionXLControlNetPipeline(
            **pipe.components, controlnet=net, add_watermarker=False
        )

    pipe, plain = build(), build()
    images: Any = [switches.picture()] * nets if nets > 1 else switches.picture()
    scales: Any = [0.5, 0.8] if nets > 1 else 0.7
    ends: Any = [1.0, 0.5] if nets > 1 else 0.5
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        for call in ({}, {"controlnet_conditioning_scale": scales, "control_guidance_end": ends}):
            made = make(model, image=images, **call)
            assert torch.equal(made, apart(plain, image=images, **call))
            assert (model.report.ranks, len(model.report.steps)) == (2, switches.STEPS)
        guessed = make(model, image=images, guess_mode=True)
        assert torch.equal(guessed, apart(plain, image=images, guess_mode=True))
        assert not torch.equal(guessed, made)


@pytest.mark.parametrize("adapters", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_t2i_adapters(adapters: int) -> None:
    def build() -> Any:
        pipe = switches.sdxl()
        found = [switches.t2i_adapter() for _ in range(adapters)]
        adapter: Any = MultiAdapter(found) if adapters > 1 else found[0]
        return StableDiffusionXLAdapterPipeline(**pipe.components, adapter=adapter)

    pipe, plain = build(), build()
    image: Any = [switches.picture()] * adapters if adapters > 1 else switches.picture()
    scale: Any = [0.5, 0.8] if adapters > 1 else 0.7
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        for call in ({}, {"adapter_conditioning_factor": 0.5}):
            call = {"adapter_conditioning_scale": scale, **call}
            made = make(model, image=image, **call)
            assert torch.equal(made, apart(plain, image=image, **call))
            assert (model.report.ranks, len(model.report.steps)) == (2, switches.STEPS)
