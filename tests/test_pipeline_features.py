"""What a pipeline does by itself it still does when it is optimized."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from PIL import Image
from torch import nn

import hybridiff_compile
from hybridiff_compile.errors import HybridiffError
from hybridiff_compile.runtime import driver
from tests import pipelines
from tests.reference import branches_apart

NAME = "small-sd3"


@pytest.fixture(scope="module")
def plain() -> Any:
    return pipelines.load(NAME)


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    with hybridiff_compile.optimize(pipelines.load(NAME)) as model:
        yield model


def make(pipe: Any, seed: int = 0, **call: Any) -> Any:
    return pipe(**pipelines.settings(NAME, seed, num_inference_steps=4, **call)).images


def expected(plain: Any, seed: int = 0, **call: Any) -> Any:
    with branches_apart(plain.transformer):
        return make(plain, seed, **call)


def test_model_and_pipe_are_the_same(model: Any, plain: Any) -> None:
    assert torch.equal(make(model), make(model.pipe))
    assert isinstance(model.pipe, type(plain))
    assert type(model.pipe).__name__ == type(plain).__name__


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For what the pipeline itself computes (encoding and decoding): equal thread counts."""
    with driver.one_thread(torch.device("cpu")):
        yield


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("output_type", ["latent", "np", "pil"])
def test_output_types(model: Any, plain: Any, output_type: str) -> None:
    made, wanted = make(model, output_type=output_type), expected(plain, output_type=output_type)
    assert np.array_equal(np.asarray(made[0]), np.asarray(wanted[0]))


def test_seeds_and_no_generator(model: Any) -> None:
    assert torch.equal(make(model, seed=3), make(model, seed=3))
    assert not torch.equal(make(model, seed=3), make(model, seed=4))
    assert torch.isfinite(make(model, generator=None)).all()


def test_callbacks_see_and_change_the_latents(model: Any, plain: Any) -> None:
    def halve(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        return {"latents": values["latents"] / 2 if step == 1 else values["latents"]}

    changed = make(model, callback_on_step_end=halve)
    assert torch.equal(changed, expected(plain, callback_on_step_end=halve))
    assert not torch.equal(changed, make(model))


def test_a_callback_may_write_the_latents_in_place(model: Any, plain: Any) -> None:
    def scale(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        values["latents"].mul_(0.9)
        return values

    changed = make(model, callback_on_step_end=scale)
    assert torch.equal(changed, expected(plain, callback_on_step_end=scale))


def test_interrupt_ends_the_run_early(model: Any) -> None:
    def interrupt(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step == 1
        return values

    make(model, callback_on_step_end=interrupt)
    assert len(model.report.steps) == 2
    make(model)
    assert len(model.report.steps) == 4


def test_an_error_in_a_callback_leaves_the_model_usable(model: Any, plain: Any) -> None:
    def fail(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        make(model, callback_on_step_end=fail)
    assert torch.equal(make(model), expected(plain))


def test_the_progress_bar_counts_every_step(capfd: pytest.CaptureFixture[str]) -> None:
    pipe = pipelines.load(NAME)
    pipe.set_progress_bar_config(disable=False)
    with hybridiff_compile.optimize(pipe) as model:
        model.compile(**pipelines.settings(NAME))
        assert "it/s" not in capfd.readouterr().err
        make(model)
    assert "4/4" in capfd.readouterr().err


def test_no_guidance_runs_on_one_rank_and_says_so_once(
    model: Any, plain: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "hybridiff_compile"):
        made = [make(model, guidance_scale=1.0) for _ in range(2)]
    said = [r for r in caplog.records if "nothing to split" in r.getMessage()]
    assert len(said) == 1
    assert model.report.ranks == 1
    assert (len(model.report.steps), model.report.unguided) == (4, 0)
    assert (made[0] - make(plain, guidance_scale=1.0)).abs().max() < 1e-4


def test_guidance_switched_off_in_mid_run(model: Any, plain: Any) -> None:
    def stop_guiding(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            pipe._guidance_scale = 0.0
            values["prompt_embeds"] = values["prompt_embeds"].chunk(2)[1]
            pooled = values["pooled_prompt_embeds"]
            values["pooled_prompt_embeds"] = pooled.chunk(2)[1]
        return values

    inputs = ["latents", "prompt_embeds", "pooled_prompt_embeds"]
    call = {
        "callback_on_step_end": stop_guiding,
        "callback_on_step_end_tensor_inputs": inputs,
    }
    made = make(model, **call)
    assert [step.phase.name for step in model.report.steps[:2]] == ["SERIAL"] * 2
    assert len(model.report.steps) + model.report.unguided == 4
    assert (made - make(plain, **call)).abs().max() < 1e-4


def test_new_shapes_are_captured_once_each(model: Any, plain: Any) -> None:
    sizes = [{"height": 32, "width": 64}, {"height": 64, "width": 32}]
    before = len(model.programs())
    for call in (*sizes, *sizes):
        assert torch.equal(make(model, **call), expected(plain, **call))
    assert len(model.programs()) == before + 2


def test_compile_prepares_the_programs_without_a_picture() -> None:
    with hybridiff_compile.optimize(pipelines.load(NAME), mode="paper") as model:
        with pytest.raises(HybridiffError, match=r"no graphs: no guided call.*model.compile"):
            model.graphs()
        model.compile(**pipelines.settings(NAME))
        text = model.graphs()
        prepared = model.programs()
        pipelines.latents(model, NAME)
        assert len(model.programs()) == len(prepared) == 1
    assert "SERIAL program, level GUARDED" in text
    assert "PIPELINED program, level GUARDED" in text
    assert "send_cut_next" in text


@pytest.mark.usefixtures("one_thread")
def test_img2img() -> None:
    picture = Image.fromarray(np.full((64, 64, 3), 90, np.uint8))
    call = {"image": picture, "strength": 0.6, "num_inference_steps": 8}
    components = pipelines.load("small-sdxl").components
    untouched = StableDiffusionXLImg2ImgPipeline(**pipelines.load("small-sdxl").components)
    pipe = StableDiffusionXLImg2ImgPipeline(**components)
    for p in (pipe, untouched):
        p.set_progress_bar_config(disable=True)
    with hybridiff_compile.optimize(pipe) as model:
        made = pipelines.latents(model, "small-sdxl", **call)
        assert len(model.report.steps) == 4
    with branches_apart(untouched.unet):
        assert torch.equal(made, pipelines.latents(untouched, "small-sdxl", **call))


class _Lora(nn.Module):
    """Adds a low-rank update, as an adapter library would put it in a linear layer's place."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.base = base
        self.down = nn.Parameter(torch.randn(2, base.in_features, generator=generator))
        self.up = nn.Parameter(torch.randn(base.out_features, 2, generator=generator))
        self.scale = 0.1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.scale * (x @ self.down.T @ self.up.T)


@pytest.mark.slow
def test_a_changed_denoiser_is_captured_again() -> None:
    pipe, plain = pipelines.load(NAME), pipelines.load(NAME)
    with hybridiff_compile.optimize(pipe) as model:
        first = make(model)
        for p in (pipe, plain):
            p.transformer.proj_out = _Lora(p.transformer.proj_out)
        adapted = make(model)
        assert torch.equal(adapted, expected(plain))
        assert not torch.equal(adapted, first)
        for p in (pipe, plain):
            p.transformer.proj_out.scale = 0.3
        assert torch.equal(make(model), expected(plain))
        with torch.no_grad():
            for p in (pipe, plain):
                p.transformer.proj_out.up.mul_(2)
        assert torch.equal(make(model), expected(plain))


def test_the_thread_count_is_put_back(model: Any) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    seen = []

    def look(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        seen.append(torch.get_num_threads())
        return values

    make(model, callback_on_step_end=look)
    after = torch.get_num_threads()
    torch.set_num_threads(threads)
    assert after == 2
    assert set(seen) == {2}


def test_weights_that_were_made_in_inference_mode(plain: Any) -> None:
    with torch.inference_mode():
        pipe = pipelines.load(NAME)
    assert all(p.is_inference() for p in pipe.transformer.parameters())
    with hybridiff_compile.optimize(pipe) as model:
        for seed in range(2):  # captured once: such weights have no version that could change
            assert torch.equal(make(model, seed), expected(plain, seed))
        assert len(model.programs()) == 1
