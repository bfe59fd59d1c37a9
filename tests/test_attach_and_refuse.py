"""Into a pipeline and out of it: restoring, refusing, and errors before any work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

import hybridiff_compile
from hybridiff_compile.errors import (
    ClosedError,
    ConfigError,
    HybridiffError,
    UnsupportedPipelineError,
)
from tests import pipelines, toy
from tests.reference import branches_apart

NAME = "small-sd3"


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    with hybridiff_compile.optimize(pipelines.load(NAME)) as model:
        yield model


def make(pipe: Any) -> torch.Tensor:
    return pipelines.latents(pipe, NAME, num_inference_steps=4)


def test_restore_leaves_the_pipeline_as_it_was() -> None:
    pipe = pipelines.load(NAME)
    own_class, attributes = type(pipe), set(vars(pipe.transformer))
    model = hybridiff_compile.optimize(pipe)
    make(model)
    report = model.report
    assert repr(model) == "<Model of StableDiffusion3Pipeline: hybrid, gpus=2>"
    assert model.restore() is pipe
    assert type(pipe) is own_class
    assert set(vars(pipe.transformer)) == attributes
    assert torch.equal(make(pipe), make(pipelines.load(NAME)))
    for use in (model, model.compile, model.programs, model.graphs):
        with pytest.raises(ClosedError, match="restored"):
            use()
    assert model.restore() is pipe  # once more is not an error
    model.close()
    assert model.report is report
    assert repr(model) == "<Model of StableDiffusion3Pipeline: restored>"


def test_restore_leaves_a_later_patch_on_top_of_the_plain_forward() -> None:
    pipe, counted = pipelines.load(NAME), []
    expected = pipelines.latents(pipe, NAME, num_inference_steps=2)
    model = hybridiff_compile.optimize(pipe, gpus=1)
    ours = pipe.transformer.forward

    def patch(*args: Any, **kwargs: Any) -> Any:
        counted.append(1)
        return ours(*args, **kwargs)

    pipe.transformer.forward = patch
    model.restore()
    assert pipe.transformer.forward is patch
    assert torch.equal(pipelines.latents(pipe, NAME, num_inference_steps=2), expected)
    assert len(counted) == 2
    del pipe.transformer.forward
    assert torch.equal(pipelines.latents(pipe, NAME, num_inference_steps=2), expected)


def test_optimizing_twice_is_refused(model: Any) -> None:
    with pytest.raises(ConfigError, match=r"optimized already; call restore\(\)"):
        hybridiff_compile.optimize(model.pipe, gpus=1)


def test_a_denoiser_that_compiles_itself_is_refused_by_name() -> None:
    pipe = pipelines.load(NAME)
    pipe.transformer.compile()
    with pytest.raises(UnsupportedPipelineError, match=r"compiled by torch.compile or its own"):
        hybridiff_compile.optimize(pipe, gpus=1)


class Two:
    """A pipeline of two denoisers, the second one for the later steps."""

    def __init__(self) -> None:
        self.unet: Any = toy.seeded(toy.Toy)
        self.unet_2: Any = toy.seeded(toy.Toy)
        with torch.no_grad():
            self.unet_2.conv_out.weight.mul_(0.5)
        self.scheduler: Any = DDIMScheduler()

    @torch.no_grad()
    def __call__(self) -> torch.Tensor:
        g = torch.Generator().manual_seed(1)
        x, text = torch.randn(1, 4, 8, 8, generator=g), torch.randn(2, 3, 6, generator=g)
        self.scheduler.set_timesteps(8)
        for step, t in enumerate(self.scheduler.timesteps):
            unet = self.unet if step < 4 else self.unet_2
            (eps,) = unet(torch.cat([x, x]), t / 500.0, text, return_dict=False)
            u, c = eps.chunk(2)
            x = self.scheduler.step(u + 3 * (c - u), t, x).prev_sample
        return x


def test_a_second_denoiser_has_ranks_of_its_own() -> None:
    plain, pipe = Two(), Two()
    with branches_apart(plain.unet), branches_apart(plain.unet_2):
        expected = plain()
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        for _ in range(2):
            assert torch.equal(model(), expected)
            assert (model.report.ranks, len(model.report.steps)) == (2, 8)
            own, peer = model.report.rank_steps
            assert [s.step for s in own] == [s.step for s in peer] == list(range(8))
        assert len(model.programs()) == 2
    assert "forward" not in {**vars(pipe.unet), **vars(pipe.unet_2)}


def test_a_second_denoiser_that_cannot_be_shared_is_told_of(caplog: Any) -> None:
    pipe = Two()
    pipe.unet_2.register_forward_hook(lambda *_: None)
    expected = Two()()
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        assert (model() - expected).abs().max() < 1e-4
        assert len(model.report.steps) == 4
    said = [m for m in caplog.messages if m.startswith("one rank runs this pipeline's unet_2: ")]
    assert len(said) == 1
    assert "forward hooks of its own" in said[0]


def test_saving_an_optimized_pipeline_saves_the_pipeline(model: Any, tmp_path: Any) -> None:
    model.pipe.save_pretrained(tmp_path)
    assert (
        '"_class_name": "StableDiffusion3Pipeline"' in (tmp_path / "model_index.json").read_text()
    )


class _NoDenoiser:
    unet = None


class _NoWeights:
    transformer = nn.Identity()


def test_bad_settings_are_refused_before_any_work() -> None:
    pipe = pipelines.load(NAME)
    own_class = type(pipe)
    for error, match, call in [
        (ConfigError, "gpus=3", {"gpus": 3}),
        (ConfigError, "gpus=0", {"gpus": 0}),
        (ConfigError, "mode='fast' is unknown; choose one of exact, paper", {"mode": "fast"}),
        (ConfigError, "backend='cuda' is unknown", {"backend": "cuda"}),
        (ConfigError, "k=5 is for mode paper or guided", {"k": 5, "mode": "exact"}),
        (ConfigError, "k=0 must be a whole number", {"mode": "paper", "k": 0}),
    ]:
        with pytest.raises(error, match=match):
            hybridiff_compile.optimize(pipe, **call)
    with pytest.raises(UnsupportedPipelineError, match="_NoDenoiser has no denoiser"):
        hybridiff_compile.optimize(_NoDenoiser())
    with pytest.raises(UnsupportedPipelineError, match=r"Identity, has no parameters.*are loaded"):
        hybridiff_compile.optimize(_NoWeights())
    assert type(pipe) is own_class


def test_more_ranks_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})
    with pytest.raises(ConfigError, match=r"gpus=2, but this machine has 1 cpu device"):
        hybridiff_compile.optimize(pipelines.load(NAME))


def test_a_schedule_that_does_not_fit_is_refused_before_the_first_step() -> None:
    steps = []

    def note(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        return values

    with hybridiff_compile.optimize(pipelines.load(NAME), mode="paper", tau_cap=10, k=4) as model:
        call = pipelines.settings(NAME, callback_on_step_end=note)
        with pytest.raises(
            ConfigError, match=r"tau_cap=10 and k=4 end at step 14, after the run's 12"
        ):
            model(**call)
        assert model.programs() == []
    assert steps == []


def test_a_failed_call_has_no_report() -> None:
    def fail(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        raise KeyError("a defect of the user's")

    with hybridiff_compile.optimize(pipelines.load(NAME), gpus=1) as model:
        with pytest.raises(HybridiffError, match="no call was made yet"):
            _ = model.report
        make(model)
        model.compile(**pipelines.settings(NAME))
        assert len(model.report.steps) == 4  # preparing is not a call
        with pytest.raises(KeyError):
            pipelines.latents(model, NAME, callback_on_step_end=fail)
        with pytest.raises(HybridiffError, match="or the last one failed; make a picture first"):
            _ = model.report
        make(model)
        assert len(model.report.steps) == 4
