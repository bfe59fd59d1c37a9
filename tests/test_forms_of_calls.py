"""Denoisers and pipelines that pass things in other forms than most."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

import hybridiff_compile
from tests import toy
from tests.reference import one_thread

STEPS = 4


Answer = tuple[torch.Tensor, ...]


class Holds(nn.Module):
    """Has a denoiser within."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = toy.seeded(toy.Toy)


class Rest(Holds):
    """Takes some of its arguments without a name."""

    def forward(self, x: torch.Tensor, *timestep: Any) -> Answer:
        return self.unet(x, *timestep, return_dict=False)


class Whatever(Holds):
    """Takes whatever it is given."""

    def forward(self, *args: Any, timestep: Any = None, **kwargs: Any) -> Answer:
        return self.unet(*args, return_dict=False, **kwargs)


class Nested(Holds):
    """Has arguments that would have one name, flattened: in an argument, and of a branch."""

    def forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor,
        text_u: torch.Tensor | None = None,
        more: dict[str, torch.Tensor] | None = None,
        more_a: torch.Tensor | None = None,
    ) -> Answer:
        assert more is not None
        assert more_a is not None
        assert text_u is not None
        return self.unet(x, timestep, text + more["a"] - 0.5 * more_a + text_u, return_dict=False)


class Writes(Holds):
    """Writes into its text."""

    def forward(self, x: torch.Tensor, timestep: Any, text: torch.Tensor) -> Answer:
        text.mul_(0.99)
        return self.unet(x, timestep, text, return_dict=False)


class Two(Holds):
    """Has two outputs of several rows."""

    def forward(self, x: torch.Tensor, timestep: Any, text: torch.Tensor) -> Answer:
        (eps,) = self.unet(x, timestep, text, return_dict=False)
        return eps, eps.mean(1)


class Guides:
    """By two calls a step, or by one of two branches."""

    def __init__(self, kind: type[nn.Module], batch: int = 1, in_place: bool = False) -> None:
        self.transformer: Any = kind()
        self.scheduler: Any = DDIMScheduler(beta_schedule="scaled_linear")
        self.batch, self.in_place = batch, in_place

    @torch.no_grad()
    def __call__(self, steps: int = STEPS, together: bool = False) -> torch.Tensor:
        g = torch.Generator().manual_seed(0)
        x = torch.randn(self.batch, 4, 8, 8, generator=g)
        texts = [torch.randn(self.batch, 3, 6, generator=g) for _ in range(2)]
        self.scheduler.set_timesteps(steps)
        for t in self.scheduler.timesteps:
            if together:
                (both,) = self.transformer(torch.cat([x, x]), t / 500.0, torch.cat(texts))
                u, c = both.chunk(2)
            else:
                u, c = (self.branch(x, t, text) for text in texts)
            guided = u.mul_(-3.0).add_(c.mul_(4.0)) if self.in_place else -3.0 * u + 4.0 * c
            x = self.scheduler.step(guided, t, x).prev_sample
        return x

    def branch(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        if isinstance(self.transformer, Nested):
            more = {"text_u": 0.1 * text, "more": {"a": text}, "more_a": 2 * text}
            return self.transformer(x, t / 500.0, text, **more)[0]
        first, *others = self.transformer(x, t / 500.0, text)
        if others:
            assert others[0].is_contiguous()
            first = first + others[0].view(-1).view(self.batch, 1, 8, 8)
        return first


def plain(*how: Any, **call: Any) -> torch.Tensor:
    """What the pipeline itself makes, on one thread."""
    with one_thread():
        return Guides(*how)(**call)


@pytest.mark.parametrize(("kind", "batch"), [(Rest, 1), (Whatever, 1), (Nested, 1), (Two, 2)])
def test_every_form_of_call_has_the_bits_of_the_pipeline(kind, batch):
    expected = plain(kind, batch)
    with hybridiff_compile.optimize(Guides(kind, batch), mode="exact") as model:
        assert torch.equal(model(), expected)
        assert (model.report.ranks, len(model.report.steps)) == (2, STEPS - 1)


@pytest.mark.parametrize("gpus", [1, 2])
@pytest.mark.parametrize("together", [False, True])
def test_a_denoiser_that_writes_its_argument_is_run_as_often_as_it_is_called(
    gpus, together, caplog
):
    expected = plain(Writes, together=together)
    with hybridiff_compile.optimize(Guides(Writes), mode="exact", gpus=gpus) as model:
        assert torch.equal(model(together=together), expected)
    assert "writes into its argument text" in caplog.text


@pytest.mark.parametrize("gpus", [1, 2])
@pytest.mark.parametrize("together", [False, True])
def test_hybrid_keeps_predictions_that_the_pipeline_writes_into(gpus, together):
    made = []
    for in_place in (False, True):
        pipe = Guides(Rest, 1, in_place)
        with hybridiff_compile.optimize(pipe, mode="hybrid", gpus=gpus, tolerance=10.0) as model:
            made.append(model(steps=30, together=together))
            assert model.report.steps_by_phase["forecast"] > 5
    assert torch.allclose(*made, atol=1e-6)


def test_paper_measures_predictions_before_the_pipeline_writes_into_them():
    made = []
    for in_place in (False, True):
        pipe = Guides(Rest, 1, in_place)
        with hybridiff_compile.optimize(pipe, mode="paper", tau1=4, k=3) as model:
            made.append(model(steps=12, together=True))
            assert model.report.steps_by_phase["pipelined"] == 3
    assert torch.allclose(*made, atol=1e-6)
