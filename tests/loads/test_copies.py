"""A copy of an optimized pipeline, in whatever way it is made, is the plain pipeline."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

import hybridiff_compile
from tests import pipelines
from tests.loads import switches


def _of_embeds(made: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    wide = [torch.randn(1, 16, pipelines.TEXT, generator=generator) for _ in range(2)]
    flat = [torch.randn(1, 64, generator=generator) for _ in range(2)]
    names = "prompt_embeds", "negative_prompt_embeds"
    call = dict(zip(names, wide, strict=True))
    call |= dict(zip((n.replace("prompt", "pooled_prompt") for n in names), flat, strict=True))
    return partial(made, **call)


make, apart = _of_embeds(switches.make), _of_embeds(switches.apart)


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    pipe = switches.sdxl()
    # Once a text encoder of transformers has run, no pickle takes it, in a plain pipeline neither.
    pipe.register_modules(text_encoder=None, text_encoder_2=None)
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        make(model)  # the weights now lie in a file that the ranks share
        yield model


def saved(pipe: Any, folder: Path) -> Any:
    pipe.save_pretrained(folder)
    return DiffusionPipeline.from_pretrained(folder, local_files_only=True, add_watermarker=False)


def through_torch(pipe: Any, _: Path) -> Any:
    file = io.BytesIO()
    torch.save(pipe, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[[Any, Path], Any]] = {
    "deepcopy": lambda pipe, _: copy.deepcopy(pipe),
    "pickle": lambda pipe, _: pickle.loads(pickle.dumps(pipe)),
    "torch.save": through_torch,
    "save_pretrained": saved,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_is_plain_and_independent(model: Any, way: str, tmp_path: Path) -> None:
    other = WAYS[way](model.pipe, tmp_path)
    assert type(other) is StableDiffusionXLPipeline
    assert vars(other.unet).get("forward") in (None, other.unet.forward)
    assert other.unet.forward.__func__ is type(other.unet).forward
    report = model.report
    assert torch.equal(apart(other), make(model))
    with torch.no_grad():
        other.unet.conv_out.weight.mul_(2)
    report = model.report
    changed = make(other)
    assert model.report is report  # the copy's calls are none of the model's
    assert (changed - make(model)).abs().max() > 1e-3
    with hybridiff_compile.optimize(other, mode="exact", gpus=1) as second:
        assert (make(second) - changed).abs().max() < 1e-3
    assert type(other) is StableDiffusionXLPipeline


def test_a_copy_of_the_model_is_the_plain_pipeline(model: Any) -> None:
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is StableDiffusionXLPipeline
        assert torch.equal(apart(other), make(model))


def test_a_copy_of_the_denoiser_alone_is_plain(model: Any) -> None:
    unet = model.pipe.unet
    plain = pickle.dumps(switches.sdxl().unet)
    pickled = pickle.dumps(unet)
    assert len(pickled) < 1.1 * len(plain)  # not the whole mapping with each weight
    for other in (copy.deepcopy(unet), pickle.loads(pickled)):
        assert other.forward.__func__ is type(unet).forward
        assert other.forward.__self__ is other
        weights = zip(other.parameters(), unet.parameters(), strict=True)
        assert all(torch.equal(mine, theirs) for mine, theirs in weights)


def test_a_pipeline_made_of_its_class_is_plain(model: Any) -> None:
    pipe = model.pipe
    for other in (
        type(pipe)(**pipe.components, add_watermarker=False),
        type(pipe).from_pipe(pipe),
        pipe.from_pipe(pipe),
        copy.copy(pipe),
    ):
        assert type(other) is StableDiffusionXLPipeline
    assert isinstance(pipe, StableDiffusionXLPipeline)
    assert (
        type(StableDiffusionXLImg2ImgPipeline.from_pipe(pipe)) is StableDiffusionXLImg2ImgPipeline
    )
