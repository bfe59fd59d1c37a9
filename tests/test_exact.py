"""mode="exact": bit-identical to one device that runs the two branches one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

import hybridiff_compile
from tests import pipelines
from tests.reference import branches_apart

Pair = tuple[Any, Any]


@pytest.fixture(scope="module")
def sdxl() -> Iterator[Pair]:
    """(optimized model, untouched pipeline)."""
    with hybridiff_compile.optimize(pipelines.load("tiny-sdxl"), mode="exact") as model:
        yield model, pipelines.load("tiny-sdxl")


@pytest.fixture(scope="module")
def sd3() -> Iterator[Pair]:
    """(optimized model, untouched pipeline)."""
    with hybridiff_compile.optimize(pipelines.load("tiny-sd3"), mode="exact") as model:
        yield model, pipelines.load("tiny-sd3")


def assert_same_bits(pair: Pair, name: str, **call: Any) -> None:
    model, plain = pair
    made = pipelines.latents(model, name, **call)
    denoiser = plain.unet if name == "tiny-sdxl" else plain.transformer
    with branches_apart(denoiser):
        expected = pipelines.latents(plain, name, **call)
    assert torch.isfinite(made).all()
    assert torch.equal(made, expected)


@pytest.mark.parametrize("scheduler", ["euler", *pipelines.slow("ddim", "dpm++2m")])
def test_sdxl_keeps_its_bits(sdxl: Pair, scheduler: str) -> None:
    for pipe in (sdxl[0].pipe, sdxl[1]):
        pipelines.set_scheduler(pipe, "tiny-sdxl", scheduler)
    assert_same_bits(sdxl, "tiny-sdxl")
    report = sdxl[0].report
    assert report.steps_by_phase == {"serial": pipelines.STEPS, "pipelined": 0, "forecast": 0}
    assert (report.ranks, report.tau1, report.tau2) == (2, None, None)
    assert all(s.discrepancy is not None and s.discrepancy > 0 for s in report.steps)


@pytest.mark.parametrize("scheduler", ["flow-euler", *pipelines.slow("dpm++2m")])
def test_sd3_keeps_its_bits(sd3: Pair, scheduler: str) -> None:
    for pipe in (sd3[0].pipe, sd3[1]):
        pipelines.set_scheduler(pipe, "tiny-sd3", scheduler)
    assert_same_bits(sd3, "tiny-sd3")


@pytest.mark.parametrize("name", ["tiny-sd3", *pipelines.slow("tiny-sdxl")])
def test_several_prompts_with_several_pictures_each(
    name: str, request: pytest.FixtureRequest
) -> None:
    pair = request.getfixturevalue(name.removeprefix("tiny-"))
    call = {
        "prompt": [pipelines.PROMPT, pipelines.OTHER_PROMPT],
        "negative_prompt": ["a red circle", "a blue square"],
        "num_images_per_prompt": 2,
        "num_inference_steps": 3,
    }
    assert_same_bits(pair, name, **call)


def test_embeddings_and_guidance_rescale(sdxl: Pair) -> None:
    _, plain = sdxl
    embeds = plain.encode_prompt(pipelines.PROMPT, negative_prompt="a red circle")
    names = ["prompt_embeds", "negative_prompt_embeds"]
    names += ["pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
    call = dict(zip(names, embeds, strict=True))
    assert_same_bits(sdxl, "tiny-sdxl", guidance_rescale=0.7, num_inference_steps=3, **call)


def test_the_driver_feeds_embeddings_once_a_run(sd3: Pair) -> None:
    model, _ = sd3
    for _ in range(2):  # a first call may send more
        pipelines.latents(model, "tiny-sd3", num_inference_steps=4)
    short = model.report.bytes_sent
    pipelines.latents(model, "tiny-sd3", num_inference_steps=8)
    four_more_steps = model.report.bytes_sent - short
    by_phase = model.programs()[0]
    serial = by_phase[hybridiff_compile.Phase.SERIAL]
    values = {
        n.name: n.meta["val"] for g in serial.graphs for n in g.graph.nodes if "val" in n.meta
    }
    latent_bytes = values["hidden_states_c"].nbytes
    embedding_bytes = values["encoder_hidden_states_c"].nbytes
    assert embedding_bytes < short
    # Latents there and the prediction back, and some headers; the embeddings did not travel again.
    assert 8 * latent_bytes < four_more_steps < 8 * latent_bytes + 4 * 800


@pytest.mark.parametrize("takes", [True, False], ids=["as they are made", "frozen"])
def test_weights_that_take_a_gradient_and_those_that_do_not(takes: bool) -> None:
    """torch multiplies by another kernel where a weight takes a gradient: on every rank, then."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    pipe = DDPMPipeline(unet=unet.eval().requires_grad_(takes), scheduler=DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        seeds = [torch.Generator().manual_seed(seed) for seed in (0, 1, 0, 1)]
        call: Any = {"batch_size": 4, "num_inference_steps": 2, "output_type": "np"}
        made = torch.from_numpy(model(**call, generator=seeds).images)
        assert model.report.ranks == 2
        assert torch.equal(made[:2], made[2:])  # the rows of either rank
        unet.requires_grad_(not takes)
        seeds = [torch.Generator().manual_seed(seed) for seed in (0, 1, 0, 1)]
        made = torch.from_numpy(model(**call, generator=seeds).images)
        assert model.report.ranks == 2
        assert torch.equal(made[:2], made[2:])
