"""Pipelines of diffusers that have no attribute of their scale, on tiny random components."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    IFPipeline,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    UNet2DConditionModel,
)

import hybridiff_compile
from hybridiff_compile import session
from hybridiff_compile.runtime.run import Run
from tests.pipelines import awake

W, STEPS = 4.5, 20


def vae() -> Any:
    return AutoencoderKL(latent_channels=4, block_out_channels=(8,), norm_num_groups=4)


def text(seed: int) -> torch.Tensor:
    return torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(seed))


def pixart(kind: Any) -> tuple[Any, dict[str, Any]]:
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
    )
    scheduler = DPMSolverMultistepScheduler()
    pipe = kind(None, None, vae(), awake(transformer), scheduler)
    mask = torch.ones(1, 5)
    return pipe, {
        "prompt": None,
        "prompt_embeds": text(1),
        "prompt_attention_mask": mask,
        "negative_prompt": None,
        "negative_prompt_embeds": text(2),
        "negative_prompt_attention_mask": mask,
        "use_resolution_binning": False,
        "output_type": "latent",
    }


def dit(kind: Any) -> tuple[Any, dict[str, Any]]:
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        out_channels=8,
        num_layers=2,
        num_embeds_ada_norm=1000,
        sample_size=8,
        norm_num_groups=4,
    )
    pipe = kind(awake(transformer), vae(), DDIMScheduler())
    return pipe, {"class_labels": [3], "output_type": "np"}


def deepfloyd(kind: Any) -> tuple[Any, dict[str, Any]]:
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=3,
        out_channels=6,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    scheduler = DDPMScheduler(variance_type="learned_range", prediction_type="epsilon")
    pipe = kind(None, None, awake(unet), scheduler, None, None, None, requires_safety_checker=False)
    call = {"prompt_embeds": text(1), "negative_prompt_embeds": text(2), "output_type": "pt"}
    return pipe, call


@pytest.mark.parametrize(
    ("build", "kind", "weights"),
    [
        (pixart, PixArtAlphaPipeline, [[1 - W, W]]),  # the variance is learned, and left out
        (dit, DiTPipeline, [[W, 1 - W], [W, 1 - W]]),  # [cond, uncond], and given back doubled
        (deepfloyd, IFPipeline, [[1 - W, W]]),  # the variance goes along, unguided
    ],
)
def test_the_scale_is_read_off(
    build: Callable[..., tuple[Any, dict[str, Any]]],
    kind: Any,
    weights: list[list[float]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert not hasattr(kind, "guidance_scale")
    told = type(kind.__name__, (kind,), {"guidance_scale": 1.0, "__module__": kind.__module__})
    runs: list[Run] = []

    def run() -> Run:
        runs.append(Run())
        return runs[-1]

    monkeypatch.setattr(session, "Run", run)
    pictures = []
    for made in (kind, told):
        torch.manual_seed(0)
        pipe, call = build(made)
        pipe.set_progress_bar_config(disable=True)
        call |= {"num_inference_steps": STEPS, "guidance_scale": W}
        with hybridiff_compile.optimize(pipe, gpus=1, tolerance=2.0) as model:
            out = model(generator=torch.Generator().manual_seed(0), **call)
            pictures.append((torch.as_tensor(out.images), model.report))
    looked = [reading for run in runs for _, reading in run.weighing.steps]
    assert len(looked) > 4
    for reading in looked:
        assert reading is not None
        for row, expected in zip(reading.tolist(), weights, strict=True):
            assert row == pytest.approx([1.0, *expected], rel=1e-2)
    (plain, report), (other, twin) = pictures
    assert torch.equal(plain, other)
    assert [s.phase for s in report.steps] == [s.phase for s in twin.steps]
    assert [s.error for s in report.steps] == [s.error for s in twin.steps]
    assert "cannot be read off" not in caplog.text
