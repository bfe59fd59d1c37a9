"""A model is verified against one device: the figures are those of a comparison done by hand."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import hybridiff_compile
from hybridiff_compile import quality
from hybridiff_compile.errors import ConfigError, UnsupportedPipelineError
from hybridiff_compile.quality import relative_error
from hybridiff_compile.verification import Verification, check
from tests import pipelines
from tests.reference import branches_apart

STEPS = 8
CALL = {
    "num_inference_steps": STEPS,
    "guidance_scale": 5.0,
    "height": 64,
    "width": 64,
    "max_sequence_length": 16,
}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return pipelines.shallow()


@pytest.fixture
def plain() -> Any:
    return pipelines.shallow()


def latents_by_step(pipe: Any, seed: int) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []

    def note(_pipe: Any, _step: int, _t: Any, values: dict[str, Any]) -> dict[str, Any]:
        seen.append(values["latents"].clone())
        return {}

    pipe(**pipelines.settings("small-sd3", seed, **CALL), callback_on_step_end=note)
    return seen


@pytest.fixture(scope="module")
def forecasting() -> Iterator[tuple[Any, Verification]]:
    pipe = pipelines.shallow()
    with hybridiff_compile.optimize(pipe, 1, mode="forecast", tau1=3, k=4, m=2) as model:
        yield model, model.verify(pipelines.PROMPT, seeds=(0, 1), **CALL)


def test_the_errors_are_those_of_a_comparison_by_hand(
    forecasting: tuple[Any, Verification], plain: Any
) -> None:
    model, found = forecasting
    by_hand, largest = [], 0.0
    for seed in (0, 1):
        made = latents_by_step(model, seed)
        with branches_apart(plain.transformer):
            wanted = latents_by_step(plain, seed)
        by_hand.append([relative_error(a, b) for a, b in zip(made, wanted, strict=True)])
        largest = max(largest, float((made[-1] - wanted[-1]).abs().max()))
    assert found.error_by_step == pytest.approx(np.mean(by_hand, axis=0).tolist(), rel=1e-6)
    assert found.max_abs_error == pytest.approx(largest, rel=1e-6)
    # Until the first extrapolated step, one batch and two calls differ by their rounding only.
    assert max(found.error_by_step[:3]) < 1e-5 < 1e-4 < found.error_by_step[3]


def test_the_rest_is_of_the_models_runs(forecasting: tuple[Any, Verification]) -> None:
    model, found = forecasting
    assert found.steps_by_phase == {"serial": 5.0, "pipelined": 0.0, "forecast": 3.0}
    assert (found.mode, found.seeds, len(found.error_by_step)) == ("forecast", (0, 1), STEPS)
    assert found.psnr_db is not None
    assert 10 < found.psnr_db < 100
    assert min(found.seconds, found.one_device_seconds) > 0
    assert (model.report.mode, model.report.ranks) == ("forecast", 1)
    assert len(model.report.steps) == STEPS


def test_two_exact_ranks_give_the_bits_of_one_device(pipe: Any, plain: Any) -> None:
    with hybridiff_compile.optimize(pipe) as model:
        found = model.verify(pipelines.PROMPT, seeds=range(1, 2), **CALL)
        assert (found.max_abs_error, set(found.error_by_step)) == (0.0, {0.0})
        assert (found.psnr_db, found.seeds) == (100.0, (1,))
        assert model.report.ranks == 2
        assert "0: the same bits" in str(found)
        # Apart is of this device alone: what the worker would have sent is not there.
        with model.session().here.apart():
            alone = pipelines.latents(model, "small-sd3", **CALL)
        assert (model.report.ranks, model.report.mode) == (1, "exact")
        assert torch.equal(alone, pipelines.latents(model, "small-sd3", **CALL))
        assert model.report.ranks == 2
    with branches_apart(plain.transformer):
        assert torch.equal(alone, pipelines.latents(plain, "small-sd3", **CALL))


def test_apart_ends_with_its_block(pipe: Any) -> None:
    with hybridiff_compile.optimize(pipe, 1, mode="forecast", tau1=3, k=4) as model:
        with pytest.raises(KeyError), model.session().here.apart():
            raise KeyError
        pipelines.latents(model, "small-sd3", **CALL)
        assert model.report.steps_by_phase["forecast"] == 3


def test_latents_give_no_figures_of_pictures(pipe: Any) -> None:
    with hybridiff_compile.optimize(pipe, 1, mode="forecast", tau1=3, k=4) as model:
        found = model.verify(pipelines.PROMPT, output_type="latent", **CALL)
    assert (found.psnr_db, found.ssim, found.lpips) == (None, None, None)
    assert found.max_abs_error > 0
    assert str(found).count("not measured") == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompt": ""}, "prompt='': pass the prompt"),
        ({"seeds": ()}, r"seeds=\(\) must be whole numbers"),
        ({"seeds": "12"}, "seeds='12' must be whole numbers"),
        ({"seeds": 3}, "seeds=3 must be whole numbers"),
        ({"seeds": (0, 1.5)}, r"seeds=\(0, 1.5\) must be whole numbers"),
        ({"generator": None}, "drop generator, pass seeds"),
        ({"callback_on_step_end": print}, "drop callback_on_step_end"),
    ],
)
def test_what_cannot_be_compared_is_refused(pipe: Any, change: dict[str, Any], says: str) -> None:
    asked = {"prompt": pipelines.PROMPT, "num_inference_steps": 2, **change}
    with (
        hybridiff_compile.optimize(pipe, 1) as model,
        pytest.raises(ConfigError, match=says),
    ):
        model.verify(**{**CALL, **asked})


def test_a_call_that_shares_nothing_is_refused(pipe: Any) -> None:
    asked = {"prompt": pipelines.PROMPT, "num_inference_steps": 2, "guidance_scale": 1.0}
    with (
        hybridiff_compile.optimize(pipe, 1, mode="exact") as model,
        pytest.raises(ConfigError, match="no step of this call was guided"),
    ):
        model.verify(**{**CALL, **asked})


def test_a_pipeline_that_shows_no_latents_is_refused() -> None:
    class Blind:
        def __call__(self, prompt: str) -> None: ...

    with pytest.raises(UnsupportedPipelineError, match="Blind takes no callback_on_step_end and"):
        check(Blind(), "a", (0,), {})


def test_printing_shows_every_figure() -> None:
    shown = str(
        Verification(
            mode="hybrid",
            seeds=(0, 7),
            psnr_db=51.26,
            ssim=0.99871,
            lpips=None,
            max_abs_error=0.0123,
            error_by_step=(0.0, 0.0, 0.001, 0.002),
            steps_by_phase={"serial": 20.5, "pipelined": 0.0, "forecast": 29.5},
            seconds=1.5,
            one_device_seconds=2.25,
        )
    )
    lines = dict(line.split(maxsplit=1) for line in shown.splitlines() if "error" not in line)
    assert lines["seeds"] == "0, 7"
    assert lines["steps"] == "20.5 serial, 29.5 forecast"
    assert (lines["PSNR"], lines["SSIM"]) == ("51.3 dB", "0.9987")
    assert lines["LPIPS"] == "not measured; it takes that and torchvision's AlexNet"
    assert lines["seconds"] == "1.50 a call; one device, branch by branch: 2.25"
    assert "1.23e-02 of the final latents" in shown
    assert "2.00e-03 of their size, from step 2 on" in shown


def test_a_verification_is_frozen(forecasting: tuple[Any, Verification]) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        forecasting[1].psnr_db = 100.0  # pyright: ignore[reportAttributeAccessIssue]


def test_relative_error_of_known_latents() -> None:
    ones = torch.ones(2, 2)
    assert relative_error(1.1 * ones, ones) == pytest.approx(0.1)
    assert relative_error(2 * ones, 4 * ones) == 0.5
    assert relative_error(0 * ones, 0 * ones) == 0.0


@pytest.fixture
def fake_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for torchmetrics and torchvision; notes how it was called."""
    calls: dict[str, Any] = {}

    def measure(name: str) -> Any:
        def noting(a: torch.Tensor, b: torch.Tensor, **how: Any) -> torch.Tensor:
            calls[name] = (a.shape, b.shape, how)
            return torch.tensor(0.5)

        return noting

    names = ("structural_similarity_index_measure", "learned_perceptual_image_patch_similarity")
    image = types.ModuleType("torchmetrics.functional.image")
    vars(image).update({name: measure(name) for name in names})
    monkeypatch.setitem(sys.modules, image.__name__, image)
    monkeypatch.setattr(quality.importlib.util, "find_spec", lambda name: SimpleNamespace())
    return calls


def test_torchmetrics_is_used_where_it_is_installed(
    fake_torchmetrics: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    pictures = np.zeros((2, 8, 16, 3))
    assert quality.ssim(pictures, pictures) == 0.5
    assert quality.lpips(pictures, pictures) is None  # the weights are not here
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth").touch()
    assert quality.lpips(pictures, pictures) == 0.5
    shape = (2, 3, 8, 16)
    assert list(fake_torchmetrics.values()) == [
        (shape, shape, {"data_range": 1.0}),
        (shape, shape, {"net_type": "alex", "normalize": True}),
    ]


def test_ssim_is_one_for_equal_pictures_and_less_for_others() -> None:
    pictures = np.random.default_rng(0).random((2, 16, 24, 3))
    assert quality.ssim(pictures, pictures) == pytest.approx(1.0)
    other = quality.ssim(pictures, 1 - pictures)
    assert other is not None
    assert other < 0.1


def test_without_torchmetrics_there_is_no_ssim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality.importlib.util, "find_spec", lambda name: None)
    pictures = np.zeros((1, 8, 8, 3))
    assert quality.ssim(pictures, pictures) is None
