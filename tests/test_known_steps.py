"""What a step is known to be: one call of all branches, or several calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

import hybridiff_compile
from tests import toy
from tests.reference import one_thread

STEPS = 6


class Pipe:
    """Guides by a call for each branch, or not at all, as each run asks."""

    def __init__(self, batch: int = 1) -> None:
        self.unet: Any = toy.seeded(toy.Toy)
        self.scheduler: Any = DDIMScheduler(beta_schedule="scaled_linear")
        self.batch = batch

    @torch.no_grad()
    def __call__(
        self,
        guides: bool = True,
        equal: bool = False,
        moves: float = 1.0,
        steps: int = STEPS,
        at: Any = None,
        numbers: bool = False,
    ) -> torch.Tensor:
        """Make latents.

        Args:
            guides: by two calls.
            equal: the pictures begin as one.
            moves: what the second call's picture is multiplied by.
            steps: of the scheduler.
            at: called with the pipeline after each step.
            numbers: the time is a number, not a tensor.
        """
        g = torch.Generator().manual_seed(0)
        x = torch.randn(self.batch, 4, 8, 8, generator=g)
        x = x[:1].repeat(self.batch, 1, 1, 1) if equal else x
        texts = [torch.randn(self.batch, 3, 6, generator=g) for _ in range(2)]
        self.scheduler.set_timesteps(steps)
        for i, t in enumerate(self.scheduler.timesteps):
            time = float(t) / 500 if numbers else t / 500.0
            c = self.predict(x, time, texts[0])
            if guides:
                u = self.predict(moves * x if moves != 1 else x, time, texts[1])
                c = u + 4.0 * (c - u)
            x = self.scheduler.step(c, t, x).prev_sample
            if at is not None:
                at(self, i)
        return x

    def predict(self, x: torch.Tensor, t: Any, text: torch.Tensor) -> torch.Tensor:
        t = torch.as_tensor(t)
        return self.unet(x, t, encoder_hidden_states=text, return_dict=False)[0]


class ByNumber(toy.Toy):
    """Takes its time as a number, too."""

    def forward(self, sample: torch.Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        return super().forward(sample, torch.as_tensor(timestep), *args, **kwargs)


class Numbered(Pipe):
    def __init__(self) -> None:
        super().__init__()
        self.unet = toy.seeded(ByNumber)

    def predict(self, x: torch.Tensor, t: Any, text: torch.Tensor) -> torch.Tensor:
        return self.unet(x, t, encoder_hidden_states=text, return_dict=False)[0]


def plain(pipe: Any, **call: Any) -> torch.Tensor:
    """What the pipeline itself makes, on one thread."""
    with one_thread():
        return pipe(**call)


def test_equal_pictures_are_no_branches_once_a_step_had_several_calls():
    expected = plain(Pipe(2), equal=True)
    with hybridiff_compile.optimize(Pipe(2), mode="exact") as model:
        first = model(equal=True)
        for _ in range(2):
            assert torch.equal(model(equal=True), expected)
            assert (len(model.report.steps), model.report.unguided) == (STEPS - 1, 1)
    assert torch.allclose(first, expected, atol=1e-5)  # its first step was shared by rows


def test_hybrid_skips_steps_of_equal_pictures():
    with hybridiff_compile.optimize(Pipe(2), mode="hybrid", tolerance=10.0) as model:
        for _ in range(2):
            model(equal=True, steps=30)
            assert model.report.steps_by_phase["forecast"] > 5
            assert len(model.report.steps) + model.report.unguided == 30


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("mode", ["exact", "hybrid"])
def test_a_run_without_guidance_teaches_nothing_wrong_of_one_with_it(batch, mode):
    expected = plain(Pipe(batch))
    with hybridiff_compile.optimize(Pipe(batch), mode=mode) as model:
        model(guides=False)
        for number in range(2):
            made = model()
            assert len(model.report.steps) + model.report.unguided == STEPS
            if mode == "exact" and (batch == 1 or number):
                assert torch.equal(made, expected)
            assert torch.allclose(made, expected, atol=1e-5)


def test_weights_written_in_mid_run_are_taken_by_the_next_one():
    def write(pipe: Any, step: int) -> None:
        if step == 2:
            with torch.no_grad():
                pipe.unet.conv_in.weight.mul_(1.1)

    pipe = Pipe()
    expected = plain(Pipe(), at=write)
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        assert torch.equal(model(at=write), expected)
        changed = Pipe()
        changed.unet.load_state_dict(pipe.unet.state_dict())
        expected = plain(changed)
        for _ in range(2):
            assert torch.equal(model(), expected)
            assert (model.report.ranks, len(model.report.steps)) == (2, STEPS - 1)


def test_calls_of_several_pictures_are_no_steps_of_their_own(caplog):
    expected = plain(Pipe(), moves=0.9)
    with hybridiff_compile.optimize(Pipe(), mode="hybrid", tolerance=10.0) as model:
        assert torch.equal(model(moves=0.9), expected)
        assert model.report.steps_by_phase["forecast"] == 0
    assert "is of another noisy picture" in caplog.text
    assert "called once a step" not in caplog.text


def test_a_number_at_each_step_is_said(caplog):
    expected = plain(Numbered(), numbers=True)
    with hybridiff_compile.optimize(Numbered(), mode="exact") as model:
        assert torch.equal(model(numbers=True), expected)
        assert model.report.ranks == 1
    assert "its argument timestep is another one at each step" in caplog.text
