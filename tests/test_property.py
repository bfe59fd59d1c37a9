"""Whatever a pipeline passes to its denoiser, and how often, exact gives the pipeline's bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hybridiff_compile
from tests import toy
from tests.reference import one_thread

SCHEDULERS: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "pndm": partial(PNDMScheduler, skip_prk_steps=True),  # it repeats a step
}


@dataclass(frozen=True)
class Step:
    """What a pipeline does at one step.

    Attributes:
        calls: of the denoiser, in this order: "u" and "c" are prompts, several make one batch.
        times: how often each call is made, each time of another noisy picture.
        rewrites: the prompts change before it: as new tensors, or in their own memory.
        scale: of guidance.
    """

    calls: tuple[str, ...]
    times: int
    rewrites: str
    scale: float


@dataclass(frozen=True)
class Script:
    """One call of a pipeline.

    Attributes:
        pictures: how many.
        equal: they begin with the same noise.
        wide: the time step is a tensor of rows, not one number.
    """

    scheduler: str
    pictures: int
    equal: bool
    wide: bool
    steps: tuple[Step, ...]


class ByRows(toy.Toy):
    """A denoiser whose rows have the same bits in every batch: it computes them one by one."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        return_dict: bool = True,
    ) -> Any:
        made = []
        for i in range(len(sample)):
            time = timestep[i : i + 1] if timestep.dim() else timestep
            text = encoder_hidden_states[i : i + 1]
            (out,) = super().forward(sample[i : i + 1], time, text, None, False)
            made.append(out)
        return (torch.cat(made),)


class Scripted:
    """A pipeline that does what it is told."""

    def __init__(self) -> None:
        self.unet: Any = toy.seeded(ByRows)
        self.scheduler: Any = DDIMScheduler()

    @torch.no_grad()
    def __call__(self, script: Script) -> torch.Tensor:
        g = torch.Generator().manual_seed(1)
        x = torch.randn(script.pictures, 4, 8, 8, generator=g)
        if script.equal:
            x = x[:1].repeat(script.pictures, 1, 1, 1)
        text = {b: torch.randn(script.pictures, 3, 6, generator=g) for b in "uc"}
        batches: dict[str, torch.Tensor] = {}
        self.scheduler = SCHEDULERS[script.scheduler]()
        self.scheduler.set_timesteps(len(script.steps))
        for step, t in zip(script.steps * 2, self.scheduler.timesteps, strict=False):
            if step.rewrites == "new":
                text = {b: torch.randn(value.shape, generator=g) for b, value in text.items()}
                batches.clear()
            elif step.rewrites == "in place":
                for prompts in batches.values():
                    prompts.mul_(0.9)
            eps: dict[str, torch.Tensor] = {}
            for branches in step.calls:
                for number in range(step.times):
                    noisy = self.scheduler.scale_model_input(x * (1 - 0.1 * number), t)
                    rows = torch.cat([noisy] * len(branches))
                    at = t.float().expand(len(rows), 1).clone() if script.wide else t.float()
                    if branches not in batches:  # one tensor for many steps, as pipelines do
                        batches[branches] = torch.cat([text[b] for b in branches])
                    prompts = batches[branches]
                    out = self.unet(
                        rows, at / 500, encoder_hidden_states=prompts, return_dict=False
                    )
                    eps |= dict(zip(branches, out[0].chunk(len(branches)), strict=True))
            first = next(iter(eps.values()))
            guided = first if len(eps) < 2 else eps["u"] + step.scale * (eps["c"] - eps["u"])
            x = self.scheduler.step(guided, t, x).prev_sample
        return x


steps = st.builds(
    Step,
    calls=st.sampled_from([("uc",), ("cu",), ("u", "c"), ("c",), ("c", "uc"), ("uc", "c")]),
    times=st.sampled_from([1, 1, 1, 2]),
    rewrites=st.sampled_from(["", "", "new", "in place"]),
    scale=st.sampled_from([0.0, 1.0, 5.0]),
)
scripts = st.builds(
    Script,
    scheduler=st.sampled_from(sorted(SCHEDULERS)),
    pictures=st.integers(1, 4),
    equal=st.booleans(),
    wide=st.booleans(),
    steps=st.lists(steps, min_size=2, max_size=5).map(tuple),
)


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    with hybridiff_compile.optimize(Scripted(), mode="exact") as model:
        yield model


@given(script=scripts)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_exact_has_the_bits_of_the_pipeline(model: Any, script: Script) -> None:
    with one_thread():
        expected = Scripted()(script)
    assert expected.abs().max() > 0
    for _ in range(2):  # once more, when it is known how it guides
        assert torch.equal(model(script), expected)


def test_pipelines_of_all_kinds_run_on_two_ranks(model: Any) -> None:
    for calls, pictures in ((("uc",), 1), (("u", "c"), 1), (("c", "uc"), 1), (("c",), 2)):
        steps = (Step(calls, 1, "", 5.0),) * 3
        model(Script("ddim", pictures, False, False, steps))
        assert model.report.ranks == 2, calls
