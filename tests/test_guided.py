"""Guided pipelining and forecasting, end to end, against re-computations on one device."""

from typing import Any

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler

import hybridiff_compile
from tests import pipelines
from tests.reference_guided import Extrapolated

PINNED = [
    ("guided", 3, 7, 1),
    pytest.param("guided", 3, 7, 2, marks=pytest.mark.slow),
    pytest.param("guided", 4, 5, 3, marks=pytest.mark.slow),
    ("forecast", 3, 7, 2),
    pytest.param("forecast", 2, 9, 4, marks=pytest.mark.slow),
]


def reference(name: str, kind: str, tau1: int, k: int, m: int) -> tuple[torch.Tensor, int]:
    pipe = pipelines.load(name)
    denoiser = pipe.unet if name.endswith("sdxl") else pipe.transformer
    plain = Extrapolated(denoiser, kind, tau1, k, m)
    with plain.attached():
        return pipelines.latents(pipe, name), plain.forwards


@pytest.mark.parametrize(
    "name", ["small-sd3", *pipelines.slow("small-sdxl", "tiny-sdxl", "tiny-sd3")]
)
@pytest.mark.parametrize(("kind", "tau1", "k", "m"), PINNED)
def test_pinned_phase_equals_a_plain_recomputation(name, kind, tau1, k, m):
    expected, _ = reference(name, kind, tau1, k, m)
    settings: Any = {"mode": kind, "tau1": tau1, "k": k, "m": m}
    with hybridiff_compile.optimize(pipelines.load(name), **settings) as model:
        made = pipelines.latents(model, name)
        again = pipelines.latents(model, name)
        counts = model.report.steps_by_phase
    assert (made - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert torch.equal(made, again)  # nothing of one run is left in the next
    assert counts["serial"] < pipelines.STEPS - k + 2
    assert (made - plain(name)).abs().max() > 1e-3  # it did approximate


_plain: dict[str, torch.Tensor] = {}


def plain(name: str) -> torch.Tensor:
    if name not in _plain:
        _plain[name] = pipelines.latents(pipelines.load(name), name)
    return _plain[name]


def test_the_report_tells_when_each_rank_computed():
    with hybridiff_compile.optimize(pipelines.shallow(), mode="guided", tau1=2, k=3) as model:
        for _ in range(2):
            pipelines.latents(model, "small-sd3", num_inference_steps=7)
        report = model.report
    assert [[s.step for s in steps] for steps in report.rank_steps] == [list(range(7))] * 2
    for first, second in zip(*report.rank_steps, strict=True):
        assert second.sent is not None
        assert second.begin < second.sent <= second.end
        assert first.begin < second.sent < first.end  # it waits for what rank 1 sends
        if first.step in range(2, 5):  # guided
            assert first.sent is not None
            assert first.begin < first.sent < second.end
        else:  # a serial step has only its stamp to send
            assert first.sent is None


def test_forecast_on_one_device_is_that_of_two_ranks():
    expected, _ = reference("small-sd3", "forecast", 2, 8, 3)
    settings: Any = {"mode": "forecast", "tau1": 2, "k": 8, "m": 3, "gpus": 1}
    with hybridiff_compile.optimize(pipelines.load("small-sd3"), **settings) as model:
        made = pipelines.latents(model, "small-sd3")
    assert (made - expected).abs().max() <= 1e-4 * expected.abs().max()  # a batch of two branches


def test_hybrid_extrapolates_what_its_tolerance_allows_and_says_why():
    def run(model: Any) -> tuple[torch.Tensor, Any]:
        made = pipelines.latents(model, "small-sd3", num_inference_steps=24)
        return made, model.report

    pipe = pipelines.load("small-sd3")
    exact = pipelines.latents(pipe, "small-sd3", num_inference_steps=24)
    off, forecast = [], []
    for tolerance in (1e-9, 0.6, 10.0):
        with hybridiff_compile.optimize(pipe, mode="hybrid", tolerance=tolerance) as model:
            made, report = run(model)
        off.append((made - exact).abs().mean().item())
        forecast.append(report.steps_by_phase["forecast"])
        assert report.tolerance == tolerance
        for step in report.steps:
            if step.phase.name == "FORECAST":
                predicted = float(step.reason.split("off by ")[1].split(",")[0])
                assert predicted <= tolerance
        assert "last" in report.steps[-1].reason
        assert report.steps[0].phase.name == "SERIAL"
    assert forecast[0] == 0
    assert 0 < forecast[1] < forecast[2] == 24 - 6 - 4  # all but the ends of the run
    assert off[0] < 1e-4 < off[1] < off[2]


def test_hybrid_weights_its_errors_by_the_guidance_that_a_callback_has_set():
    def change(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == 5:
            pipe._guidance_scale = 2.0
        return values

    errors = []
    pipe = pipelines.load("small-sdxl")
    with hybridiff_compile.optimize(pipe, mode="hybrid", tolerance=1e-9, gpus=1) as model:
        calls: tuple[dict[str, Any], ...] = ({}, {"callback_on_step_end": change})
        for call in calls:
            pipelines.latents(model, "small-sdxl", num_inference_steps=10, **call)
            errors.append([step.error for step in model.report.steps])
    kept, changed = errors
    assert changed[:6] == kept[:6]
    assert changed[6] != kept[6]  # of the same predictions


def test_last_steps_are_computed_where_a_callback_switches_guidance_off_before_them():
    """Steps count as the pipeline counts them, guided or not."""

    def only_from_ten_on(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        guides = pipe.do_classifier_free_guidance
        if (step + 1 >= 10) is guides:
            return values
        pipe._guidance_scale = 1.0 if guides else 5.0
        for name in INPUTS[1:]:
            if guides:
                kept[name] = values[name]
            values[name] = values[name].chunk(2)[1] if guides else kept[name]
        return values

    INPUTS, kept = ["latents", "prompt_embeds", "add_text_embeds", "add_time_ids"], {}
    call = {"callback_on_step_end": only_from_ten_on, "callback_on_step_end_tensor_inputs": INPUTS}
    pipe = pipelines.load("small-sdxl")
    with hybridiff_compile.optimize(pipe, mode="hybrid", tolerance=10.0, gpus=1) as model:
        pipelines.latents(model, "small-sdxl", num_inference_steps=30, **call)
        steps = model.report.steps
    # Step 1 is one row: that there is nothing to split is known after it.
    assert [step.index for step in steps] == [0, *range(2, 30)]
    phases = "".join("SPUCF"[step.phase] for step in steps)
    assert phases[1] == "S"
    assert "F" in phases
    assert phases.endswith("SSSS")


@pytest.mark.parametrize(
    ("mode", "gpus"),
    [
        pytest.param("paper", 2, marks=pytest.mark.slow),
        pytest.param("asyncdiff", 2, marks=pytest.mark.slow),
        ("forecast", 1),
    ],
)
def test_a_sampler_that_draws_noise_is_told_of_where_it_does_harm(mode, gpus, caplog):
    pipe = pipelines.load("small-sdxl")
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    with hybridiff_compile.optimize(pipe, mode=mode, tau1=3, k=3, gpus=gpus) as model:
        pipelines.latents(model, "small-sdxl", num_inference_steps=8)
    assert "EulerAncestralDiscreteScheduler draws noise of its own" in caplog.text


def test_hybrid_says_that_it_extrapolated_nothing(caplog):
    pipe = pipelines.load("small-sdxl")
    with hybridiff_compile.optimize(pipe, gpus=1) as model:
        for steps in (4, 24):
            pipelines.latents(model, "small-sdxl", num_inference_steps=steps)
    said = [r.getMessage() for r in caplog.records if "extrapolated none" in r.getMessage()]
    assert len(said) == 1
    assert "none of this run's 4 steps" in said[0]


def test_hybrid_goes_back_to_serial_when_the_error_grows_and_comes_again_when_it_falls():
    from hybridiff_compile.config import Controlled
    from hybridiff_compile.ir import Phase
    from hybridiff_compile.runtime.forecast import Forecast
    from hybridiff_compile.runtime.run import Run

    steps, noise = 40, torch.Generator().manual_seed(0)
    run = Run(settings=Controlled(0.05, m=3, warm=4, tail=2, steps=steps, estimator="linear"))
    run.forecast = Forecast("linear", [float(i) for i in range(steps)], parts=2)

    def compute(phase: Phase) -> torch.Tensor:
        rough = 0.5 if 15 <= len(run.done) < 25 else 0.0
        return torch.ones(2, 64) + rough * torch.randn(2, 64, generator=noise)

    for _ in range(steps):
        u, c = run.step(None, compute, {}).chunk(2)
        run.note_scheduled(u + 5 * (c - u), None)
    letters = "".join("SPUCF"[done.phase] for done in run.done)
    assert "F" in letters[4:15]
    assert "F" not in letters[19:25]
    assert "F" in letters[30:38]
    assert letters.endswith("SS")


def test_guided_pipelining_declines_a_sampler_that_draws_noise(caplog):
    pipe = pipelines.load("small-sdxl")
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    exact = pipelines.latents(pipe, "small-sdxl", num_inference_steps=6)
    with hybridiff_compile.optimize(pipe, mode="guided", tau1=2, k=3) as model:
        made = pipelines.latents(model, "small-sdxl", num_inference_steps=6)
        again = pipelines.latents(model, "small-sdxl", num_inference_steps=6)
        report = model.report
    assert (made - exact).abs().max() < 1e-3
    assert torch.equal(made, again)
    assert report.steps_by_phase["pipelined"] == 0
    assert "EulerAncestralDiscreteScheduler draws noise" in report.steps[3].reason
    assert len([r for r in caplog.records if "nothing is pipelined" in r.getMessage()]) == 1
