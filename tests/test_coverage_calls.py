"""examples/coverage.py: what it sees of a pipeline's calls, and what it gives them."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import ConfigMixin, DDIMScheduler, EulerDiscreteScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.cache_utils import CacheMixin


class Net(ModelMixin, ConfigMixin, CacheMixin):
    """A denoiser of one weight."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((1,), 2.0))

    def forward(self, hidden_states: Any, text: float | torch.Tensor = 0.0) -> tuple[Any]:
        if isinstance(hidden_states, list):
            return ([self.weight * x for x in hidden_states],)
        return (self.weight * hidden_states + text,)


class Fake:
    """A pipeline of which a test makes the calls."""

    def __init__(self) -> None:
        self.net, self.other, self.control = Net(), Net(), Net()
        self.scheduler: Any = DDIMScheduler()
        self.scheduler.set_timesteps(10)
        self.x = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))

    def step(self) -> None:
        self.scheduler.step(self.x, 1, self.x)

    def batched(self) -> None:
        self.net(torch.cat([self.x, self.x]), torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))
        self.step()

    def twice(self) -> None:
        for text, name in enumerate(("cond", "uncond")):
            with self.net.cache_context(name, step_index=0):
                self.net(self.x, text)
        self.step()

    def thrice_with_conditions(self) -> None:
        conditions = torch.randn(3, 4, 2, 2)
        self.net(torch.cat([torch.cat([self.x] * 3), conditions], dim=1))
        self.step()

    def listed(self) -> None:
        self.net([self.x[0], self.x[0]])
        self.step()

    def beside(self) -> None:
        self.control(self.x)
        self.net(self.x)
        self.step()

    def with_another(self) -> None:
        self.other(self.x)
        self.step()

    def alone(self) -> None:
        self.net(self.x)
        self.step()

    def without_steps(self) -> None:
        self.net(self.x)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([Fake.batched] * 2, "net: 1 call of 2 rows; 2 equal parts"),
        ([Fake.twice] * 2, "net: 2 calls of 1 row; contexts cond, uncond"),
        ([Fake.thrice_with_conditions] * 2, "net: 1 call of 3 rows; 3 equal parts"),
        ([Fake.listed] * 2, "net: 1 call of 2 rows; 2 equal parts; a list"),
        ([Fake.beside] * 2, "net: 1 call of 1 row; beside control"),
        ([Fake.alone, Fake.with_another] * 2, "net: 1 call of 1 row / other: 1 call of 1 row"),
        (
            [Fake.batched] * 2 + [Fake.alone],
            "net: 1 call of 2 rows; 2 equal parts; not at every step",
        ),
        # The first step may hold calls that prepare; what comes after the last one is no step.
        (
            [Fake.without_steps, Fake.batched, Fake.batched, Fake.without_steps],
            "net: 1 call of 2 rows; 2 equal parts; not at every step",
        ),
        ([Fake.without_steps], "net: 1 call of 1 row"),
    ],
)
def test_a_pattern_is_found_from_the_calls(
    script: Any, steps: list[Callable[[Fake], None]], expected: str
) -> None:
    calls, pipe = script("coverage_calls"), Fake()
    own = DDIMScheduler.step
    with calls.watched(pipe) as seen:
        for step in steps:
            step(pipe)
    found = calls.patterns(seen)
    assert " / ".join(f"{p.name}: {p}" for p in found) == expected
    assert DDIMScheduler.step is own
    assert not pipe.net._forward_hooks
    seen_before = len(seen)
    pipe.batched()
    assert len(seen) == seen_before


def test_a_pattern_says_how_much_the_branches_differ(script: Any) -> None:
    calls, pipe = script("coverage_calls"), Fake()
    effects = []
    for step in (pipe.batched, pipe.twice, pipe.alone, pipe.thrice_with_conditions):
        with calls.watched(pipe) as seen:
            step()
        effects.append(calls.patterns(seen)[0].effect)
    assert effects[0] == pytest.approx(1 / (2 * pipe.x).abs().max().item())
    assert effects[1] == effects[0]
    assert effects[2] is None
    assert effects[3] > 0


def test_a_copy_of_the_scheduler_is_watched_and_steps_by_itself(script: Any) -> None:
    calls, pipe = script("coverage_calls"), Fake()
    own: Any = EulerDiscreteScheduler()
    own.set_timesteps(3)
    pipe.scheduler = own
    with calls.watched(pipe) as seen:
        pipe.scheduler = copy.deepcopy(own)
        for time in own.timesteps[:2]:
            pipe.net(pipe.x)
            pipe.scheduler.step(pipe.x, time, pipe.x)
    assert [len(step) for step in seen] == [1, 1, 0]
    assert (pipe.scheduler.step_index, own.step_index) == (2, None)


def test_no_weight_is_zero_and_random_ones_stay(script: Any) -> None:
    net = torch.nn.ModuleDict(
        {
            "linear": torch.nn.Linear(3, 3),
            "norm": torch.nn.LayerNorm(3),
            "words": torch.nn.Embedding(4, 3, padding_idx=0),
            "halved": torch.nn.Linear(2, 2, dtype=torch.bfloat16),
        }
    )
    linear = net["linear"]
    assert isinstance(linear, torch.nn.Linear)
    torch.nn.init.zeros_(linear.bias)
    with torch.no_grad():
        next(net["halved"].parameters())[0, 0] = torch.nan
    kept, words = linear.weight.clone(), next(net["words"].parameters()).clone()
    script("coverage_cases").randomize({"net": net})
    for weight in net.parameters():
        assert (weight != 0).all()
        assert weight.isfinite().all()
        assert len(weight.flatten().unique()) > 1
    assert torch.equal(linear.weight, kept)
    assert torch.equal(next(net["words"].parameters())[1:], words[1:])


def parameters(**defaults: Any) -> Any:
    """Parameters of a call, by name."""
    return {n: types.SimpleNamespace(default=value) for n, value in defaults.items()}


@pytest.mark.parametrize(
    ("takes", "given", "expected"),
    [
        ({"guidance_scale": 7.5}, {}, {}),
        ({"guidance_scale": 7.5}, {"guidance_scale": 1.0}, {"guidance_scale": 4.0}),
        ({"guidance_scale": None}, {"guidance_scale": 3.0}, {}),
        ({"true_cfg_scale": 1.0}, {"prompt": "a"}, {"true_cfg_scale": 4.0}),
        ({"negative_prompt": None}, {"prompt": "a"}, {"negative_prompt": "ugly and blurred"}),
        ({"negative_prompt": None}, {"prompt": ["a"]}, {"negative_prompt": ["ugly and blurred"]}),
        ({"negative_prompt": None}, {"prompt": "a", "negative_prompt": "b"}, {}),
        ({"negative_prompt": None}, {"prompt_embeds": 1}, {}),
        ({"num_inference_steps": 50}, {"num_inference_steps": 2}, {"num_inference_steps": 3}),
        ({"num_inference_steps": 50}, {"timesteps": [9, 1]}, {}),
        ({"prior_num_inference_steps": 25}, {}, {"prior_num_inference_steps": 3}),
        (
            {"output_type": "pil", "return_dict": True},
            {"output_type": "np"},
            {"output_type": "latent", "return_dict": False},
        ),
    ],
)
def test_guidance_is_on_and_steps_are_few(
    script: Any, takes: dict[str, Any], given: dict[str, Any], expected: dict[str, Any]
) -> None:
    cases = script("coverage_cases")
    assert cases.settings(parameters(**takes), given, 3, "latent") == expected
