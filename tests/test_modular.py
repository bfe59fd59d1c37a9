"""Pipelines of blocks (modular ones) are taken as ordinary ones are."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from diffusers import (
    ClassifierFreeGuidance,
    EulerDiscreteScheduler,
    ModularPipeline,
    ModularPipelineBlocks,
)
from diffusers.modular_pipelines.modular_pipeline import PipelineState
from diffusers.modular_pipelines.stable_diffusion_xl import (
    modular_blocks_stable_diffusion_xl as blocks,
)

import hybridiff_compile
from hybridiff_compile.arguments import check_call, with_prompt
from hybridiff_compile.errors import ConfigError, HybridiffError, UnsupportedPipelineError
from tests import modular, pipelines
from tests.modular import STEPS, make
from tests.reference import one_thread

#: Two pictures at once.
TWO: dict[str, Any] = {"num_images_per_prompt": 2}


@pytest.fixture(scope="module")
def call() -> dict[str, Any]:
    return modular.sdxl()[1]


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    with hybridiff_compile.optimize(modular.sdxl()[0], mode="exact") as model:
        yield model


@pytest.fixture
def plain() -> Any:
    return modular.sdxl()[0]


def on_one_thread(made: Callable[[], Any]) -> Any:
    """As a rank has."""
    with one_thread():
        return made()


def two_alone(pipe: Any, call: dict[str, Any], **more: Any) -> torch.Tensor:
    """Two pictures of a pipeline that is not optimized."""
    return on_one_thread(lambda: make(pipe, call, **TWO, **more))


#: Whose guiders call in ways of their own; the others are slow cases.
KINDS = ("sdxl", "qwen", "flux", "wan22", "z_image")


@pytest.mark.parametrize(
    "name", [n if n in KINDS else pytest.param(n, marks=pytest.mark.slow) for n in modular.ALL]
)
def test_one_picture_has_the_bits_of_the_plain_pipeline(name: str) -> None:
    pipe, call = modular.ALL[name]()
    wanted = on_one_thread(lambda: make(pipe, call))
    assert wanted.isfinite().all()
    assert wanted.std() > 0.1
    own = type(pipe)
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        assert repr(model) == f"<Model of {own.__name__}: exact, gpus=2>"
        assert torch.equal(on_one_thread(lambda: make(model, call)), wanted)
        assert torch.equal(on_one_thread(lambda: make(pipe, call)), wanted)
        assert model.report.ranks == (1 if name == "flux" else 2)  # it has one call a step
    assert type(pipe) is own
    assert "forward" not in vars(pipe.unet if name == "sdxl" else pipe.transformer)
    assert torch.equal(on_one_thread(lambda: make(pipe, call)), wanted)


def test_two_pictures_are_shared_by_two_ranks(model: Any, plain: Any, call: Any) -> None:
    for seed in (0, 1):
        made = on_one_thread(partial(make, model, call, seed, **TWO))
        assert torch.equal(made, two_alone(plain, call, seed=seed))
        assert model.report.ranks == 2
    assert not torch.equal(made, make(model, call, **TWO))


def test_a_call_returns_what_it_is_asked_for(model: Any, plain: Any, call: Any) -> None:
    wanted = make(plain, call, output_type="np", output="images")
    state = make(model, call, output_type="np", output=None)
    assert type(state).__name__ == "PipelineState"
    assert abs(state.images - wanted).max() < 1e-3
    two = make(model, call, output_type="np", output=["images", "latents"])
    assert list(two) == ["images", "latents"]
    assert (two["images"] == state.images).all()
    # A state is gone on from: here from the text that was encoded for the first picture.
    anew = {"latents": None, "timesteps": None, "state": state}
    again = make(model, anew, output_type="np", output="images")
    assert (again == state.images).all()


def test_programs_are_prepared_without_a_picture(
    call: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    pipe = modular.sdxl()[0]
    with hybridiff_compile.optimize(pipe) as model:
        for bar in modular.bars(pipe):
            bar.set_progress_bar_config(disable=False, desc="denoising")
        model.compile(**call, **TWO)
        assert len(model.programs()) == 1
        assert "denoising" not in capfd.readouterr().err
        with pytest.raises(HybridiffError, match="no report"):
            _ = model.report
        make(model, call, num_inference_steps=2, **TWO)
        assert "denoising" in capfd.readouterr().err
        assert len(model.programs()) == 1
        assert model.report.ranks == 2


def test_the_random_numbers_of_a_dry_call_are_given_back(model: Any, call: Any) -> None:
    torch.manual_seed(3)
    wanted = torch.randn(2)
    torch.manual_seed(3)
    model.compile(**call, **TWO)
    assert torch.equal(torch.randn(2), wanted)


def test_a_model_is_verified(call: Any) -> None:
    size = {"height": 64, "width": 64, "num_inference_steps": STEPS}
    with hybridiff_compile.optimize(modular.sdxl()[0], mode="exact") as model:
        found = model.verify(pipelines.PROMPT, **size, **TWO)
        assert (found.max_abs_error, found.error_by_step) == (0.0, (0.0,) * STEPS)
        assert found.psnr_db == 100.0
        latent = model.verify(pipelines.PROMPT, output_type="latent", **size, **TWO)
        assert (latent.max_abs_error, latent.psnr_db) == (0.0, None)


def test_a_verification_sees_the_error_of_each_step(recwarn: pytest.WarningsRecorder) -> None:
    pipe, call = modular.flux()
    with hybridiff_compile.optimize(pipe, 1, mode="forecast", tau1=3, k=2) as model:
        found = model.verify("", num_inference_steps=6, **call, **TWO)
    assert [error > 1e-4 for error in found.error_by_step] == [False] * 3 + [True] * 3
    assert found.max_abs_error > 1e-3
    # Its blocks make no pictures, and are not asked for them.
    assert found.psnr_db is None
    assert not [w for w in recwarn if "Unexpected input" in str(w.message)]


class Watching(ModularPipelineBlocks):
    """Takes the place of a callback: it is run after each step."""

    model_name = "stable-diffusion-xl"
    seen: ClassVar[list[Any]] = []
    model: ClassVar[Any] = None

    @property
    def inputs(self) -> list[Any]:
        return []

    def __call__(self, components: Any, block_state: Any, i: int, t: Any) -> tuple[Any, Any]:
        self.seen.append(self.model and self.model.progress.steps)
        block_state.latents = block_state.latents * 0.5
        return components, block_state


def test_a_block_of_the_users_own_is_run_at_each_step(call: Any) -> None:
    whole = blocks.StableDiffusionXLAutoBlocks()
    loop = whole.sub_blocks["denoise"].sub_blocks["denoise"].sub_blocks["denoise"]
    loop.sub_blocks.insert("watching", Watching(), 3)
    pipe = whole.init_pipeline()
    pipe.update_components(**modular.sdxl_parts())
    Watching.model = None
    wanted = on_one_thread(lambda: make(pipe, call))
    with hybridiff_compile.optimize(pipe, 1, mode="exact") as model:
        Watching.seen.clear()
        Watching.model = model
        made = on_one_thread(lambda: make(model, call))
        assert Watching.seen == [STEPS] * STEPS
    assert torch.equal(made, wanted)


def saved(pipe: Any, folder: Path) -> Any:
    pipe.save_pretrained(str(folder), overwrite_modular_index=True)
    again = ModularPipeline.from_pretrained(str(folder), local_files_only=True)
    again.load_components(local_files_only=True)
    return again


COPIES: dict[str, Callable[[Any, Path], Any]] = {
    "deepcopy": lambda pipe, _: copy.deepcopy(pipe),
    "pickle": lambda pipe, _: pickle.loads(pickle.dumps(pipe)),
    "save_pretrained": saved,
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_is_the_plain_pipeline(way: str, tmp_path: Path) -> None:
    # Only whole blocks can be loaded; once a text encoder has run, no pickle takes it.
    pipe, call = modular.sdxl() if way == "save_pretrained" else modular.sd3()
    name = "unet" if hasattr(pipe, "unet") else "transformer"
    with hybridiff_compile.optimize(pipe, 1) as model:
        copied = COPIES[way](model.pipe, tmp_path)
        assert type(copied).__call__ is ModularPipeline.__call__
        assert type(copied) is type(pipe).__mro__[1]
        assert getattr(copied, name) is not getattr(pipe, name)
        assert "_Routed" not in repr(vars(getattr(copied, name)).get("forward"))
        wanted = on_one_thread(lambda: make(model, call))
    assert torch.equal(on_one_thread(lambda: make(copied, call)), wanted)


@pytest.mark.slow
def test_components_are_updated_between_two_calls(plain: Any, call: Any) -> None:
    pipe = modular.sdxl()[0]
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        made = make(model, call, **TWO)
        changes: list[dict[str, Callable[[], Any]]] = [
            {"guider": lambda: ClassifierFreeGuidance(guidance_scale=2.0)},
            {"scheduler": lambda: EulerDiscreteScheduler.from_config(plain.scheduler.config)},
            {"unet": lambda: modular.sdxl_unet(9)},
        ]
        for change in changes:
            before = made
            for one in (pipe, plain):
                one.update_components(**{name: built() for name, built in change.items()})
            made = on_one_thread(lambda: make(model, call, **TWO))
            assert model.report.ranks == 2
            assert not torch.equal(made, before)
            assert torch.equal(made, two_alone(plain, call))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"num_inference_steps": 0}, "at least one step"),
        ({"denoising_end": float("nan")}, "denoising_end=nan is no number"),
        ({"sigmas": []}, "at least one step, pass some"),
        ({"output_type": "pill"}, "output_type='pill' is none that"),
    ],
)
def test_what_gives_no_picture_is_refused(
    model: Any, call: Any, wrong: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        make(model, {**call, **wrong})


def test_what_a_state_holds_is_refused_too(model: Any) -> None:
    state = PipelineState()
    state.set("num_inference_steps", 0)
    with pytest.raises(ConfigError, match="at least one step"):
        model(state=state)


def test_an_output_type_that_a_block_knows_is_taken(plain: Any) -> None:
    asked = {"output_type": "mp4"}
    with pytest.raises(ConfigError, match="output_type='mp4' is none that"):
        check_call(plain, (), asked)
    plain._blocks.sub_blocks["watching"] = Watching()  # its file, this one, names it
    check_call(plain, (), asked)


def test_a_pipeline_without_its_parts_is_refused() -> None:
    pipe = blocks.StableDiffusionXLAutoBlocks().init_pipeline()
    with pytest.raises(UnsupportedPipelineError, match=r"Call its load_components\(\)"):
        hybridiff_compile.optimize(pipe)


def test_a_prompt_is_given_to_those_that_take_one(plain: Any) -> None:
    assert with_prompt(plain, {"height": 64}, "a") == {"prompt": "a", "height": 64}
    state = make(plain, {"prompt": "b", "height": 64, "width": 64}, output=None)
    assert with_prompt(plain, {"state": state}, "a") == {"state": state}
    without, call = modular.sd3()
    assert with_prompt(without, call, "a") == call
    assert with_prompt(without, {}, "a") == {}
