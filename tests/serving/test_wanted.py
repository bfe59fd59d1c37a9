"""From a request to the keywords of a pipeline's call."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hybridiff_compile.errors import ConfigError
from hybridiff_compile.serving.wanted import ImageRequest, Served, preview_steps

TAKES = frozenset({"prompt", "width", "height", "generator", "num_inference_steps"})
SERVED = Served("small", [(64, 32), (32, 64)], TAKES, {"num_inference_steps": 8})


def test_what_is_not_asked_for_is_the_server_s_default() -> None:
    call = SERVED.call(ImageRequest(prompt="a cat"))
    assert call.pop("generator")[0].initial_seed() < 2**31
    assert call == {"prompt": "a cat", "width": 64, "height": 32, "num_inference_steps": 8}


def test_what_is_asked_for_replaces_it() -> None:
    call = SERVED.call(ImageRequest(prompt="a cat", size="32x64", num_inference_steps=3, seed=7))
    assert (call["width"], call["height"], call["num_inference_steps"]) == (32, 64, 3)
    assert [g.initial_seed() for g in call["generator"]] == [7]


def test_each_picture_has_the_next_seed() -> None:
    served = Served("small", [(8, 8)], TAKES | {"num_images_per_prompt"}, {})
    call = served.call(ImageRequest(prompt="a cat", n=3, seed=2**62))
    assert call["num_images_per_prompt"] == 3
    assert [g.initial_seed() - 2**62 for g in call["generator"]] == [0, 1, 2]
    largest = ImageRequest(prompt="a cat", n=4, seed=2**63 - 5)
    assert torch.rand(1, generator=served.call(largest)["generator"][3]).isfinite()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"n": 2}, "num_images_per_prompt: small has no such parameter"),
        ({"guidance_scale": 3.0}, "guidance_scale: small has no such parameter"),
        ({"negative_prompt": "rain"}, "negative_prompt: small has no such"),
        ({"size": "64x64"}, "size='64x64' is not served; choose one of 64x32, 32x64"),
        ({"size": ""}, "size='' is not served"),
    ],
)
def test_what_the_pipeline_cannot_do_is_refused(asked: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SERVED.call(ImageRequest.model_validate({"prompt": "a cat", **asked}))


@pytest.mark.parametrize(
    "asked",
    [
        {"guidance_scale": float("nan")},
        {"guidance_scale": float("inf")},
        {"seed": 2**63},
        {"seed": 1.5},
        {"response_format": "jpeg"},
        {"prompt": ["a", "b"]},
        {"prompt": "x" * 4001},
        {"num_inference_steps": 10**6},
        {"callback_on_step_end": "print"},
    ],
)
def test_nonsense_is_refused(asked: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(asked))):
        ImageRequest.model_validate({"prompt": "a cat", **asked})


@given(steps=st.integers(1, 60), previews=st.integers(0, 80))
def test_previews_are_within_the_steps_and_spread(steps: int, previews: int) -> None:
    found = sorted(preview_steps(steps, previews))
    assert len(found) == min(previews, steps - 1)
    assert all(0 <= step < steps - 1 for step in found)
    gaps = [b - a for a, b in zip([-1, *found], [*found, steps - 1], strict=True)]
    assert max(gaps) - min(gaps) <= 1
