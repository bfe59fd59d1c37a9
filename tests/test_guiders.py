"""Modular pipelines whose guider does more than to weigh two branches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    HeunDiscreteScheduler,
    LayerSkipConfig,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
)

import hybridiff_compile
from hybridiff_compile.runtime import sampler
from tests import modular
from tests.test_modular import STEPS, make, on_one_thread

#: One for each way to guide: by what was before, by other layers, at some steps only.
GUIDERS: dict[str, Callable[[], Any]] = {
    "momentum": lambda: AdaptiveProjectedGuidance(5.0, adaptive_projected_guidance_momentum=-0.5),
    "skipped": lambda: SkipLayerGuidance(
        5.0,
        skip_layer_guidance_stop=0.6,
        skip_layer_config=LayerSkipConfig([0], "mid_block.attentions.0.transformer_blocks"),
    ),
    "for a while": lambda: ClassifierFreeGuidance(5.0, start=0.4, stop=0.8),
}


@pytest.mark.parametrize("name", GUIDERS)
def test_a_guider_is_given_what_it_asks_for(name: str) -> None:
    plain, call = modular.sdxl(GUIDERS[name]())
    call["num_inference_steps"] = 5
    wanted = on_one_thread(lambda: make(plain, call))
    with hybridiff_compile.optimize(modular.sdxl(GUIDERS[name]())[0], mode="exact") as model:
        assert torch.equal(make(model, call), wanted)
        assert model.report.ranks == 2


def test_a_second_denoiser_is_shared_too() -> None:
    pipe, call = modular.wan22()
    wanted = on_one_thread(lambda: make(pipe, call, num_inference_steps=12))
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        assert torch.equal(make(model, call, num_inference_steps=12), wanted)
        assert len(model.programs()) == 2


@pytest.mark.parametrize(
    "kind", ["skip_layer", pytest.param("perturbed_attention", marks=pytest.mark.slow)]
)
def test_a_guider_that_changes_the_denoiser_for_one_call_leaves_the_others_to_the_ranks(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    skipped = LayerSkipConfig(
        indices=[0],
        fqn="mid_block.attentions.0.transformer_blocks",
        skip_attention=kind == "skip_layer",
        skip_attention_scores=kind != "skip_layer",
        skip_ff=kind == "skip_layer",
    )
    guiders: dict[str, Callable[[], Any]] = {
        "skip_layer": lambda: SkipLayerGuidance(skip_layer_config=skipped),
        "perturbed_attention": lambda: PerturbedAttentionGuidance(
            perturbed_guidance_config=skipped
        ),
    }
    pipe, call = modular.sdxl()
    pipe.update_components(guider=guiders[kind]())
    wanted = on_one_thread(lambda: make(pipe, call, num_inference_steps=16))
    pipe, call = modular.sdxl()
    pipe.update_components(guider=guiders[kind]())
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        for _ in range(2):
            made = on_one_thread(lambda: make(model, call, num_inference_steps=16))
            assert torch.equal(made, wanted)
            assert (model.report.ranks, len(model.report.steps)) == (2, 15)
    said = [m for m in caplog.messages if "changed within this run" in m]
    assert len(said) == 1


@pytest.mark.parametrize(
    ("kind", "more", "steps"),
    [
        (None, {}, STEPS),
        (HeunDiscreteScheduler, {}, 2 * STEPS - 1),
        (None, {"denoising_end": 0.5}, STEPS // 2),
        (None, {"image_latents": torch.zeros(1, 4, 16, 16), "strength": 0.5}, STEPS // 2),
    ],
)
def test_the_steps_of_a_run_are_counted(kind: Any, more: dict[str, Any], steps: int) -> None:
    pipe, call = modular.sdxl()
    if kind is not None:
        pipe.update_components(scheduler=kind.from_config(pipe.scheduler.config))
    found, times = [], []

    def look(_: Any, args: tuple[Any, ...]) -> None:
        found.append(sampler.num_steps(pipe))
        times.append(pipe.guider.get_state()["step"])

    pipe.unet.register_forward_pre_hook(look)
    make(pipe, call, **more)
    assert set(found) == {steps}
    assert len(set(times)) == steps
