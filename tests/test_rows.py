"""Rows of a batch, whatever they mean: what two ranks make of them is what one device makes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import hybridiff_compile
from hybridiff_compile.capture.call import DenoiserCall
from hybridiff_compile.looking import uneven
from tests import pipelines
from tests.reference import branches_apart

NAME = "small-sd3"
PROMPTS = [pipelines.PROMPT, pipelines.OTHER_PROMPT]


@pytest.fixture(scope="module")
def exact() -> Iterator[Any]:
    with hybridiff_compile.optimize(pipelines.load(NAME), mode="exact") as model:
        yield model


@pytest.fixture(scope="module")
def plain() -> Any:
    return pipelines.load(NAME)


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


@pytest.mark.parametrize("numbers", [(3, 3), (3, 4)], ids=["equal seeds", "different seeds"])
def test_unguided_batch_of_two_is_computed_on_two_ranks(
    exact: Any, plain: Any, numbers: tuple[int, int]
) -> None:
    call = {"prompt": PROMPTS, "guidance_scale": 1.0, "num_inference_steps": 4}
    exact.compile(**call, height=64, width=64, max_sequence_length=16, progress=False)
    made = pipelines.latents(exact, NAME, generator=seeds(*numbers), **call)
    assert (exact.report.ranks, exact.report.unguided) == (2, 0)
    with branches_apart(plain.transformer):
        expected = pipelines.latents(plain, NAME, generator=seeds(*numbers), **call)
    assert torch.equal(made, expected)
    together = pipelines.latents(plain, NAME, generator=seeds(*numbers), **call)
    assert (made - together).abs().max() < 1e-4


def test_three_unguided_pictures_are_shared_as_three_parts(exact: Any, plain: Any) -> None:
    call = {"prompt": [*PROMPTS, "a red circle"], "guidance_scale": 1.0, "num_inference_steps": 3}
    made = pipelines.latents(exact, NAME, generator=seeds(1, 2, 3), **call)
    # That these rows are all of a step's is known after the first one.
    assert (exact.report.ranks, exact.report.unguided, len(exact.report.steps)) == (2, 1, 2)
    again = pipelines.latents(exact, NAME, generator=seeds(1, 2, 3), **call)
    assert (exact.report.unguided, len(exact.report.steps)) == (0, 3)
    with branches_apart(plain.transformer):
        expected = pipelines.latents(plain, NAME, generator=seeds(1, 2, 3), **call)
    assert torch.equal(again, expected)
    assert 0 < (made - again).abs().max() < 1e-4  # the first step was computed as a batch


def test_pictures_in_a_list_are_not_taken_for_rows() -> None:
    """As Z-Image: each picture is a tensor [channels, frames, height, width] of its own."""
    pictures = [torch.randn(16, 1, 8, 8) for _ in range(2)]
    assert DenoiserCall.of(("x", "t"), (pictures, torch.ones(2)), {}).rows == 0
    nested = DenoiserCall.of(("x", "t"), ([pictures, pictures], torch.ones(2)), {})
    assert uneven(nested) == "its pictures are lists in a list, which ranks do not share"


def test_paper_pipelines_no_rows_that_are_not_guided(
    plain: Any, caplog: pytest.LogCaptureFixture
) -> None:
    call = {"prompt": PROMPTS, "guidance_scale": 1.0, "num_inference_steps": 8}
    settings = {"mode": "paper", "tau1": 3, "k": 3}
    with hybridiff_compile.optimize(pipelines.load(NAME), **settings) as model:
        made = pipelines.latents(model, NAME, generator=seeds(3, 3), **call)
        assert model.report.steps_by_phase["pipelined"] == 0
    assert "not combined as guidance combines [uncond, cond]" in caplog.text
    expected = pipelines.latents(plain, NAME, generator=seeds(3, 3), **call)
    assert (made - expected).abs().max() < 1e-4


def test_a_number_that_changes_at_each_step_is_not_captured_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def number(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        pipe._joint_attention_kwargs = {"scale": 1.0 + step}  # read at each step, and passed on
        return values

    call = {"num_inference_steps": 8, "callback_on_step_end": number}
    with hybridiff_compile.optimize(pipelines.load(NAME), mode="exact") as model:
        with caplog.at_level(logging.WARNING, "hybridiff_compile"):
            made = pipelines.latents(model, NAME, **call)
        assert len(model.programs()) == 5  # the first step has no number
    assert "it is given another number at each step" in caplog.text
    expected = pipelines.latents(pipelines.load(NAME), NAME, **call)
    assert (made - expected).abs().max() < 1e-3


def test_calls_of_two_branches_in_turn_are_not_extrapolated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As Wan guides: the denoiser is called twice a step, each time with a batch of its own."""
    pipe = pipelines.load(NAME)
    kind = type(pipe.transformer)

    class Twice(kind):
        def __call__(self, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
            super().__call__(hidden_states=-hidden_states, **kwargs)
            return super().__call__(hidden_states=hidden_states, **kwargs)

    pipe.transformer.__class__ = Twice
    expected = pipelines.latents(pipelines.load(NAME), NAME)
    with hybridiff_compile.optimize(pipe, mode="hybrid", tolerance="fast") as model:
        made = pipelines.latents(model, NAME)
        assert model.report.steps_by_phase["forecast"] == 0
    assert (made - expected).abs().max() < 1e-3
    assert "more or less than one denoiser call between two steps" in caplog.text


def test_what_one_rank_runs_as_it_is_has_all_threads_from_the_first_call_on() -> None:
    """Threads share out sums, which changes last bits."""
    pipe, seen = pipelines.load(NAME), []
    pipe.transformer.proj_out.register_forward_hook(
        lambda *_: seen.append(torch.get_num_threads())  # which is kept from call to call
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with hybridiff_compile.optimize(pipe, mode="exact") as model:
            pipelines.latents(model, NAME, num_inference_steps=3)
            assert model.report.ranks == 1
    finally:
        torch.set_num_threads(before)
    assert seen == [2, 2, 2]
