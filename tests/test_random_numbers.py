"""A denoiser that draws random numbers: the same seed makes the same picture, from the first on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import hybridiff_compile
from hybridiff_compile.runtime import driver
from tests import pipelines

NAME = "small-sd3"
MUCH, LITTLE = 0.05, 1e-6  # by more, and by less, than halves may differ from their batch


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with driver.one_thread(torch.device("cpu")):
        yield


def noisy(scale: float) -> Any:
    pipe = pipelines.load(NAME)

    def add(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
        return out + scale * torch.randn_like(out)

    pipe.transformer.proj_out.register_forward_hook(add)
    return pipe


def make(pipe: Any) -> torch.Tensor:
    torch.manual_seed(7)
    return pipelines.latents(pipe, NAME, num_inference_steps=2)


@pytest.mark.parametrize(
    ("gpus", "scale"),
    [(2, MUCH), (2, LITTLE), (1, MUCH)],
    ids=["two ranks", "two ranks, little", "one rank"],
)
def test_the_first_picture_of_a_seed_is_the_plain_pipelines(
    gpus: int, scale: float, caplog: pytest.LogCaptureFixture
) -> None:
    expected = make(noisy(scale))
    with (
        hybridiff_compile.optimize(noisy(scale), gpus, mode="exact") as model,
        caplog.at_level(logging.WARNING, "hybridiff_compile"),
    ):
        assert torch.equal(make(model), expected)
        assert model.report.ranks == 1
        assert torch.equal(make(model), expected)
    assert ("draws random numbers" in caplog.text) == (gpus == 2)


def test_halves_on_one_device_draw_the_same_for_the_first_picture_of_a_seed() -> None:
    with hybridiff_compile.optimize(noisy(LITTLE), 1, mode="exact") as model:
        first = make(model)
        assert len(model.report.steps) == 2
        assert torch.equal(first, make(model))


def test_a_call_that_is_refused_is_run_once() -> None:
    pipe, calls = noisy(MUCH), []
    own = type(pipe.transformer).forward

    class Counting(type(pipe.transformer)):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            calls.append(next(iter(kwargs.values())).shape[0])
            return own(self, *args, **kwargs)

    pipe.transformer.__class__ = Counting
    with hybridiff_compile.optimize(pipe, 1, mode="exact") as model:
        pipelines.latents(model, NAME, num_inference_steps=1)
    whole = [rows for rows in calls if rows == calls[0]]
    assert len(whole) == 1
