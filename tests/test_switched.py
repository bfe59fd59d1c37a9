"""Inputs that change in the middle of a run: nothing is extrapolated from before to after."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hybridiff_compile
from hybridiff_compile import layout
from hybridiff_compile.runtime import inputs
from tests import pipelines
from tests.guiding import STEPS, Guiding

AT = 11
REASON = "an input has changed: encoder_hidden_states"


class Switched(Guiding):
    """Takes other prompts from some step on.

    Args:
        how: "new" and "in place" hold one tensor, "cat" makes one at each step.
        at: the step; None keeps the prompts.
    """

    def __init__(self, how: str, at: int | None = AT) -> None:
        super().__init__()
        self.how, self.at = how, at
        self.held = torch.empty(0)

    def _predict(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        step = len(self.seen)
        if self.how == "cat":
            other = self.at is not None and step >= self.at
            return super()._predict(x, t, -2 * text if other else text)
        if step == 0:
            self.held = text
        if step == self.at:
            self.held = self.held.mul_(-2) if self.how == "in place" else -2 * text
        return super()._predict(x, t, self.held)


def made(pipe: Any, **settings: Any) -> tuple[torch.Tensor, Any]:
    with hybridiff_compile.optimize(pipe, **{"gpus": 1, **settings}) as model:
        return model(), model.report


def phases(report: Any) -> str:
    return "".join("SPUCFD"[step.phase] for step in report.steps)


@pytest.mark.parametrize("gpus", [1, 2])
@pytest.mark.parametrize("how", ["new", "in place", "cat"])
def test_hybrid_computes_the_steps_after_a_switch(how: str, gpus: int) -> None:
    _, report = made(Switched(how), tolerance=10.0, gpus=gpus)
    assert report.steps[AT].reason == REASON
    assert phases(report)[AT : AT + 6] == "SSSSSS"  # as at the beginning of a run
    assert "F" in phases(report)[:AT]
    assert "F" in phases(report)[AT + 6 :]
    assert [step.reason for step in report.steps].count(REASON) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "forecast", "tau1": 3, "k": 18, "m": 3},
        {"mode": "guided", "tau1": 3, "k": 18, "gpus": 2},
    ],
    ids=["forecast", "guided"],
)
def test_pinned_phases_begin_anew(settings: dict[str, Any]) -> None:
    _, report = made(Switched("new"), **settings)
    assert report.steps[AT].reason == REASON
    assert phases(report)[AT] == "S"


@pytest.mark.parametrize("how", ["new", "cat"])
def test_without_a_switch_nothing_is_another(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    latents, report = made(Switched(how, None), tolerance=0.1)
    monkeypatch.setattr(inputs.Inputs, "note", lambda *args: None)
    expected, other = made(Switched(how, None), tolerance=0.1)
    assert 0 < phases(report).count("F") < STEPS - 10
    assert [s.reason for s in report.steps] == [s.reason for s in other.steps]
    assert torch.equal(latents, expected)


def test_where_values_are_not_waited_for_the_change_is_seen_two_steps_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layout, "_is_here", lambda tensor: False)
    for how, at in (("new", AT), ("in place", AT), ("cat", AT + 2)):
        _, report = made(Switched(how), tolerance=10.0)
        assert [s.index for s in report.steps if s.reason == REASON] == [at]


@pytest.mark.parametrize(
    ("after", "least"),
    # The second picture has 31 dB where every step after the switch is computed: what was
    # extrapolated before it counts for more then. Extrapolated across the switch, it has 10.
    [(12, 40), pytest.param(20, 25, marks=pytest.mark.slow)],
)
def test_picture_of_a_switched_prompt_is_as_near_as_any(after: int, least: int) -> None:
    """Of trained weights: what is extrapolated of another prompt shows in the picture."""
    pipe = pipelines.load("tiny-sdxl")
    keys = ("prompt_embeds", "negative_prompt_embeds")
    pooled = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    first, second = (
        dict(zip((*keys, *pooled), pipe.encode_prompt(text), strict=True))
        for text in (
            pipelines.PROMPT,
            "a yellow triangle above a white circle on a black background",
        )
    )

    def switch(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == after:
            values["prompt_embeds"] = torch.cat([second[key] for key in reversed(keys)])
            values["add_text_embeds"] = torch.cat([second[key] for key in reversed(pooled)])
        return values

    def picture(pipe: Any) -> torch.Tensor:
        return pipelines.latents(
            pipe,
            "tiny-sdxl",
            seed=4,
            **first,
            num_inference_steps=50,
            output_type="pt",
            callback_on_step_end=switch,
            callback_on_step_end_tensor_inputs=["prompt_embeds", "add_text_embeds"],
        )

    exact = picture(pipe)
    with hybridiff_compile.optimize(pipe, gpus=1) as model:
        made, report = picture(model), model.report
    assert report.steps[after + 1].reason == REASON
    assert report.steps_by_phase["forecast"] > 20
    assert -10 * torch.log10((made - exact).square().mean()) > least
