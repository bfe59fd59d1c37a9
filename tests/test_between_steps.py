"""What happens to a denoiser between two steps of one call: changes of it, and gradients."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

import hybridiff_compile
from tests import toy
from tests.reference import branches_apart

STEPS, AT = 12, 7


class Skips(toy.Toy):
    """A denoiser with a setting that a guider changes."""

    strength = 1.0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        answer: Any = super().forward(*args, **kwargs)
        return (answer[0] * self.strength,)


class Pipe:
    """A pipeline that does something to its denoiser between two steps; no callback is passed."""

    def __init__(self, act: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        self.unet: Any = toy.seeded(Skips)
        self.scheduler: Any = DDIMScheduler()
        self.act = act

    @torch.no_grad()
    def __call__(self) -> torch.Tensor:
        g = torch.Generator().manual_seed(1)
        x, self.text = torch.randn(1, 4, 8, 8, generator=g), torch.randn(2, 3, 6, generator=g)
        self.unet.strength = 1.0
        self.scheduler.set_timesteps(STEPS)
        for step, t in enumerate(self.scheduler.timesteps):
            u, c = self.predict(x, t).chunk(2)
            x = self.scheduler.step(u + 3 * (c - u), t, x).prev_sample
            if step == AT:
                x = self.act(self, x)
        return x

    def predict(self, x: torch.Tensor, t: Any) -> torch.Tensor:
        rows = torch.cat([x, x])
        time = torch.tensor(float(t) / 500)
        (out,) = self.unet(rows, time, encoder_hidden_states=self.text, return_dict=False)
        return out


def change(pipe: Any, x: torch.Tensor) -> torch.Tensor:
    pipe.unet.strength = 0.5
    return x


def hook(pipe: Any, x: torch.Tensor) -> torch.Tensor:
    """As guiders skip layers."""
    handle = pipe.unet.down.register_forward_hook(lambda module, args, out: out * 0)
    try:
        return x + 0.1 * pipe.predict(x, 500)[:1]
    finally:
        handle.remove()


def towards(pipe: Any, x: torch.Tensor) -> torch.Tensor:
    """As classifiers and DPS guide: by a gradient through the denoiser."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        loss = (x - 0.5 * pipe.predict(x, 500)[1:]).square().sum()
        (slope,) = torch.autograd.grad(loss, x)
    return x.detach() - 0.05 * slope


ACTS = pytest.mark.parametrize(
    ("act", "says"),
    [
        (change, "the denoiser was changed within this run"),
        (hook, "the denoiser was changed within this run"),
        (towards, "its gradient is asked for, and programs have none"),
    ],
)


def expected(act: Callable[[Any, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Of the same pipeline, whose halves are computed apart while the denoiser is as it was."""
    pipe = Pipe(act)
    own: Any = nn.Module.__call__

    class Apart(Skips):
        def __call__(self, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            is_as_it_was = self.strength == 1.0 and not self.down._forward_hooks
            if torch.is_grad_enabled() or not is_as_it_was:
                return own(self, sample, *args, **kwargs)
            with branches_apart(self):
                return own(self, sample, *args, **kwargs)

    pipe.unet.__class__ = Apart
    return pipe()


@ACTS
def test_exact_has_the_bits_of_the_pipeline_as_it_is(
    act: Callable[[Any, torch.Tensor], torch.Tensor], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING, "hybridiff_compile"),
        hybridiff_compile.optimize(Pipe(act), mode="exact") as model,
    ):
        made = [model() for _ in range(2)]  # in the next run it is as it was when captured
        assert model.report.ranks == 2
    assert [text for text in caplog.messages if says in text]
    assert torch.equal(made[0], expected(act))
    assert torch.equal(made[1], made[0])


@ACTS
@pytest.mark.parametrize("gpus", [1, 2])
def test_hybrid_extrapolates_nothing_across_it(
    act: Callable[[Any, torch.Tensor], torch.Tensor], says: str, gpus: int
) -> None:
    with hybridiff_compile.optimize(Pipe(act), mode="hybrid", gpus=gpus) as model:
        made = model()
    exact = expected(act)
    assert (made - exact).abs().max() < 0.02 * exact.abs().max()


class Once:
    """In the first run only, changes the denoiser; in each, calls it with a shape of its own."""

    def __init__(self, *, is_over: bool) -> None:
        self.is_over = is_over

    def __call__(self, pipe: Any, x: torch.Tensor) -> torch.Tensor:
        if not self.is_over:
            pipe.unet.strength = 0.5
        self.is_over = True
        rows, text = torch.cat([x, x, x, x]), pipe.text[[0, 1, 0, 1]]
        time = torch.tensor(0.3)
        (out,) = pipe.unet(rows, time, encoder_hidden_states=text, return_dict=False)
        pipe.unet.strength = 1.0
        return x + 0.1 * out[:1]


def test_what_is_new_while_the_denoiser_is_changed_is_not_kept_for_later() -> None:
    with hybridiff_compile.optimize(Pipe(Once(is_over=False)), mode="exact") as model:
        changed, made = model(), model()
    with hybridiff_compile.optimize(Pipe(Once(is_over=True)), mode="exact") as model:
        assert torch.equal(made, model())
    assert (changed - made).abs().max() > 0.01
