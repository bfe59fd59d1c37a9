"""Errors are weighed by how a pipeline guides, whatever it tells; what cannot be known is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import HeunDiscreteScheduler, PNDMScheduler

import hybridiff_compile
from tests.guiding import STEPS, Guidance, Guiding, Telling, Unscheduled
from tests.reference_guided import Extrapolated


def made(pipe: Any, call: dict[str, Any] | None = None, **settings: Any) -> tuple[Any, Any]:
    """The latents of a call, and its report."""
    settings = {"gpus": 1, "mode": "hybrid", **settings}
    with hybridiff_compile.optimize(pipe, **settings) as model:
        latents = model(**(call or {}))
        return latents, model.report


def phases(report: Any) -> str:
    return "".join("SPUCFD"[step.phase] for step in report.steps)


def errors(report: Any) -> list[float | None]:
    return [step.error for step in report.steps]


@pytest.mark.parametrize("guidance", [1.5, 5.0, lambda step: 1.0 + step])
def test_error_is_weighed_by_the_guidance_of_its_step(guidance: Guidance) -> None:
    pipe = Guiding()
    _, report = made(pipe, {"guidance": guidance}, tolerance=1e-9)
    assert phases(report) == "S" * STEPS
    assert errors(report)[:2] == [None, None]
    for i in range(2, STEPS):
        (u, c), (u1, c1), (u0, c0) = (pipe.seen[j].chunk(2) for j in (i, i - 1, i - 2))
        w = guidance(i) if callable(guidance) else guidance
        off = w * (c - (2 * c1 - c0)).abs().mean() + abs(w - 1) * (u - (2 * u1 - u0)).abs().mean()
        expected = off / (u + w * (c - u)).abs().mean()
        assert report.steps[i].error == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("gpus", [1, 2])
def test_an_attribute_makes_no_difference(gpus: int) -> None:
    plain, report = made(Guiding(), tolerance=0.1, gpus=gpus)
    told, other = made(Telling(), tolerance=0.1, gpus=gpus)
    assert 0 < phases(report).count("F") < STEPS - 10
    assert phases(other) == phases(report)
    assert errors(other) == errors(report)
    assert torch.equal(told, plain)


def test_order_of_the_batch_makes_no_difference_to_hybrid() -> None:
    _, report = made(Guiding(order="uc"), tolerance=0.1)
    _, other = made(Guiding(order="cu"), tolerance=0.1)
    assert "F" in phases(report)
    assert phases(other) == phases(report)
    one, two = ([e for e in errors(r) if e is not None] for r in (report, other))
    assert one == pytest.approx(two, rel=1e-3)


@pytest.mark.parametrize("kind", [HeunDiscreteScheduler, PNDMScheduler])
def test_samplers_of_more_predictions_than_steps(kind: Any) -> None:
    scheduler = kind(beta_schedule="scaled_linear")
    pipe = Guiding(scheduler=scheduler)
    _, report = made(pipe, tolerance=5.0)
    assert len(report.steps) == len(scheduler.timesteps) > STEPS
    assert "F" in phases(report)
    computed = [step.error for step in report.steps[2:] if step.phase.name == "SERIAL"]
    assert None not in computed


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Any:
    return lambda what: [r for r in caplog.records if what in r.getMessage()]


IRREGULAR = "more or less than one denoiser call between two steps of the scheduler"


@pytest.mark.parametrize("mode", ["hybrid", "forecast"])
@pytest.mark.parametrize("pipe", [Unscheduled, lambda: Guiding(more=lambda step: 1)])
def test_other_than_one_call_a_step_is_computed(mode: str, pipe: Any, said: Any) -> None:
    call = {"batch": 2}
    expected = pipe()(**call)
    latents, report = made(pipe(), call, mode=mode)
    assert set(phases(report)) == {"S"}
    assert torch.allclose(latents, expected, atol=1e-5)
    assert len(said(IRREGULAR)) == 1


@pytest.mark.parametrize("mode", ["paper", "guided"])
def test_two_calls_a_step_are_not_pipelined(mode: str, said: Any) -> None:
    call = {"batch": 2, "steps": 8}
    expected = Guiding(apart=True)(**call)
    latents, report = made(Guiding(apart=True), call, mode=mode, gpus=2, tau1=3, k=3)
    assert set(phases(report)) == {"S"}
    assert torch.allclose(latents, expected, atol=1e-5)
    assert len(said("pipelines a batch of two branches")) == 1


def test_hybrid_begins_anew_after_steps_of_several_calls(said: Any) -> None:
    """As where a guidance of layers left out runs in the first steps only."""
    pipe = Guiding(more=lambda step: 1 if step < 4 else 0)
    latents, report = made(pipe, tolerance=10.0)
    index = [step.index for step in report.steps if step.phase.name == "FORECAST"]
    assert index
    assert min(index) > 8 + 3  # four steps of two calls, then three that show an error
    assert all(step.error is None for step in report.steps if step.index < 8 + 2)
    assert torch.isfinite(latents).all()
    assert len(said(IRREGULAR)) == 1


def test_second_call_of_a_step_is_not_extrapolated(said: Any) -> None:
    pipe = Guiding(again=lambda step: step >= 12)
    latents, report = made(pipe, mode="forecast", tau1=3, k=18)
    assert phases(report)[:12] == "SSSFSFSFSFSF"
    assert set(phases(report)[13:]) == {"S"}  # the first call of step 12 could not know
    assert torch.isfinite(latents).all()
    assert len(said(IRREGULAR)) == 1


def test_the_worst_is_assumed_of_what_cannot_be_read(said: Any) -> None:
    _, report = made(Guiding(), tolerance=0.1)
    assert not said("cannot be read off")
    _, other = made(Guiding(after=lambda g: g.clamp(-0.05, 0.05)), tolerance=0.1)
    assert len(said("errors are taken for those of guidance 20")) == 1
    first, second = (next(e for e in errors(r) if e is not None) for r in (report, other))
    assert second > 3 * first
    assert phases(other).count("F") < phases(report).count("F")


def test_equal_halves_keep_the_last_weights(said: Any) -> None:
    """A scale of each step is read while the halves differ; where they agree it does not matter."""

    pipe = Guiding()
    own = pipe.unet.forward

    def forward(x: torch.Tensor, time: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        (eps,) = own(x, time, *args, **kwargs)
        return (eps if time > 1.2 else eps[:1].repeat(2, 1, 1, 1),)  # 1.2: after nine steps

    pipe.unet = _Wrapped(forward)
    _, report = made(pipe, tolerance=1e-9)
    (u, _), (u1, _), (u0, _) = (pipe.seen[j].chunk(2) for j in (20, 19, 18))
    expected = 9 * (u - (2 * u1 - u0)).abs().mean() / u.abs().mean()
    assert report.steps[20].error == pytest.approx(float(expected), rel=1e-3)
    assert not said("cannot be read off")


class _Wrapped(torch.nn.Module):
    def __init__(self, run: Any) -> None:
        super().__init__()
        self.run = run
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        return_dict: bool = True,
    ) -> Any:
        return self.run(sample, timestep, encoder_hidden_states, return_dict=return_dict)


PAPER: dict[str, Any] = {"mode": "paper", "gpus": 2, "tau1": 3, "k": 3}


def test_paper_pipelines_a_batch_that_is_uncond_cond(said: Any) -> None:
    _, report = made(Guiding(), {"steps": 8}, **PAPER)
    assert phases(report) == "SSSPPDSS"
    assert not said("nothing is pipelined")


@pytest.mark.parametrize(
    ("pipe", "call", "why"),
    [
        (lambda: Guiding(order="cu"), {}, "the batch is [cond, uncond]"),
        (Guiding, {"guidance": 1.0}, "not combined as guidance combines [uncond, cond]"),
        (
            lambda: Guiding(after=lambda g: g.clamp(-0.05, 0.05)),
            {},
            "does not tell which half of the batch is which",
        ),
    ],
)
def test_paper_declines_another_batch_in_one_sentence(
    pipe: Any, call: dict[str, Any], why: str, said: Any
) -> None:
    call = {"steps": 8, **call}
    expected = pipe()(**call)
    latents, report = made(pipe(), call, **PAPER)
    assert phases(report) == "S" * 8
    assert why in report.steps[3].reason
    assert torch.allclose(latents, expected, atol=1e-5)
    assert len(said("nothing is pipelined")) == len(said(why)) == 1


def test_paper_waits_until_the_order_is_known() -> None:
    _, report = made(Guiding(), {"steps": 8}, **{**PAPER, "tau1": 1})
    assert phases(report) == "SSPDSSSS"
    assert "not known yet" in report.steps[1].reason


@pytest.mark.parametrize("order", ["uc", "cu"])
def test_guided_pipelining_takes_either_order(order: str) -> None:
    reference = Guiding(order=order)
    with Extrapolated(reference.unet, "guided", 3, 3, 1).attached():
        expected = reference(steps=10)
    latents, report = made(Guiding(order=order), {"steps": 10}, **{**PAPER, "mode": "guided"})
    assert phases(report) == "SSSCUCSSSS"
    assert torch.allclose(latents, expected, atol=1e-5)
    assert not torch.allclose(latents, Guiding(order=order)(steps=10), atol=1e-2)
