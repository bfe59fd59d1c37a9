"""The embedded pipelines load offline, have the stated parts, and follow their captions."""

# diffusers exports its names lazily, which pyright does not see.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from hybridiff_compile.bench import models, scenes

TRAINED = ("tiny-sdxl", "tiny-sd3")
# The first weights of sdxl-small's first convolution, from its seed.
SMALL_WEIGHT = [0.0204945, -0.1075345, 0.1049045]


@pytest.fixture(scope="module", params=TRAINED)
def trained(request: pytest.FixtureRequest) -> tuple[str, Any]:
    pipe = models.load(request.param)
    pipe.set_progress_bar_config(disable=True)
    return request.param, pipe


def parameters(module: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def test_sdxl_has_its_parts() -> None:
    pipe = models.load("tiny-sdxl")
    assert isinstance(pipe, StableDiffusionXLPipeline)
    assert isinstance(pipe.unet, UNet2DConditionModel)
    assert isinstance(pipe.scheduler, DDIMScheduler)
    assert isinstance(pipe.vae, AutoencoderKL)
    assert len(pipe.unet.config["block_out_channels"]) == 3
    assert pipe.config["force_zeros_for_empty_prompt"] is True
    assert pipe.watermark is None
    assert 2 < parameters(pipe.unet) < 5


def test_sd3_has_its_parts() -> None:
    pipe = models.load("tiny-sd3")
    assert isinstance(pipe, StableDiffusion3Pipeline)
    assert isinstance(pipe.transformer, SD3Transformer2DModel)
    assert isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler)
    assert len(pipe.transformer.transformer_blocks) >= 8
    assert pipe.text_encoder_3 is None
    assert pipe.tokenizer_3 is None
    assert 2 < parameters(pipe.transformer) < 5


def test_every_word_is_one_token(trained: tuple[str, Any]) -> None:
    _, pipe = trained
    caption = "a magenta triangle right of a yellow square on a dark green background"
    for words in (pipe.tokenizer, pipe.tokenizer_2):
        assert words.model_max_length == 16
        for word in scenes.words():
            assert len(words(word).input_ids) == 3, word
        ids = words(caption).input_ids
        assert len(ids) == len(caption.split()) + 2
        assert words.decode(ids, skip_special_tokens=True) == caption
        assert len(words("").input_ids) == 2


def test_default_size_is_the_trained_one(trained: tuple[str, Any]) -> None:
    name, pipe = trained
    settings = models.call_settings(name)
    assert pipe.default_sample_size * pipe.vae_scale_factor == scenes.SIZE
    assert settings["height"] == settings["width"] == scenes.SIZE
    assert settings["guidance_scale"] > 1


def test_assets_are_small_and_name_no_place() -> None:
    files = [path for path in Path(models.ASSETS).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt"}
    for path in files:
        if path.suffix == ".json":
            text = path.read_text()
            json.loads(text)
            assert not re.search(r'"(/|[A-Za-z]:\\\\)\w', text), path
            assert "_name_or_path" not in text, path


def test_vae_keeps_the_pictures(trained: tuple[str, Any]) -> None:
    _, pipe = trained
    wanted = [scenes.Scene.parse(caption) for caption in scenes.prompts(8, seed=2, split="unseen")]
    drawn = np.stack([scenes.draw(scene, seed=index) for index, scene in enumerate(wanted)])
    with torch.no_grad():
        latents = pipe.vae.encode(
            pipe.image_processor.preprocess(np.float32(drawn / 255))
        ).latent_dist.mean
        decoded = pipe.vae.decode(latents).sample
    back = pipe.image_processor.postprocess(decoded, output_type="np")
    assert all(scenes.check(*pair) for pair in zip(back, wanted, strict=True))


@pytest.mark.slow
def test_most_captions_are_followed(trained: tuple[str, Any]) -> None:
    name, pipe = trained
    captions = scenes.prompts(8, seed=9, split="unseen")
    pictures = pipe(
        captions,
        num_inference_steps=20,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
        **models.call_settings(name),
    ).images
    wanted = [scenes.Scene.parse(caption) for caption in captions]
    right = [scenes.check(*pair) for pair in zip(pictures, wanted, strict=True)]
    assert sum(right) >= 6, list(zip(captions, right, strict=True))


def test_call_settings_are_a_copy() -> None:
    models.call_settings("tiny-sd3")["height"] = 8
    assert models.call_settings("tiny-sd3")["height"] == scenes.SIZE
    assert models.call_settings("tiny-sd3")["max_sequence_length"] == 16


def test_sdxl_small_is_seeded_and_leaves_the_random_state() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    pipe: Any = models.load("sdxl-small")
    assert torch.equal(torch.get_rng_state(), state)
    weight = pipe.unet.conv_in.weight.flatten()[:3].tolist()
    assert weight == pytest.approx(SMALL_WEIGHT, abs=1e-6)
    assert pipe.unet.config["transformer_layers_per_block"] == (1, 2, 10)
    assert pipe.default_sample_size == 32
    assert 90 < parameters(pipe.unet) < 120
    settings = models.call_settings("sdxl-small")
    assert settings["height"] == settings["width"] == 32 * pipe.vae_scale_factor
    latents = pipe("a red circle", num_inference_steps=1, output_type="latent", **settings).images
    assert latents.shape == (1, 4, 32, 32)
    assert latents.isfinite().all()


@pytest.mark.parametrize("ask", [models.load, models.call_settings])
def test_unknown_names_are_refused(ask: object) -> None:
    assert callable(ask)
    with pytest.raises(ValueError, match=r"tiny-sd4; .*tiny-sdxl, tiny-sd3, sdxl-small"):
        ask("tiny-sd4")
