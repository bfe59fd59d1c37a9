"""A pipeline that guides in whatever way a test asks for, without an attribute that tells how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler

from tests import toy

#: Steps of a call.
STEPS = 24
#: The guidance of a call, or of each of its steps.
Guidance = float | Callable[[int], float]


class Guiding:
    """Makes latents, [batch, 4, 8, 8], by the toy denoiser.

    Args:
        order: of the batch, "uc" or "cu".
        apart: calls the denoiser twice a step, once for each branch.
        more: further calls of the denoiser before the batched one, by the step.
        again: in which steps the denoiser is called again, with the batch of another noisy picture.
        after: what is done to the guided prediction before the scheduler gets it.
        scheduler: None is DDIM.
    """

    def __init__(
        self,
        order: str = "uc",
        apart: bool = False,
        more: Callable[[int], int] = lambda step: 0,
        again: Callable[[int], bool] = lambda step: False,
        after: Callable[[torch.Tensor], torch.Tensor] = lambda guided: guided,
        scheduler: Any = None,
    ) -> None:
        self.unet: Any = toy.seeded(toy.Toy)
        self.scheduler: Any = scheduler or DDIMScheduler(beta_schedule="scaled_linear")
        self.order, self.apart, self.more, self.after = order, apart, more, after
        self.again = again
        self.seen: list[torch.Tensor] = []

    @torch.no_grad()
    def __call__(
        self, guidance: Guidance = 5.0, batch: int = 1, seed: int = 0, steps: int = STEPS
    ) -> torch.Tensor:
        """Make the latents; the predictions of the last call are in `seen`, each [u, c]."""
        g = torch.Generator().manual_seed(seed)
        one = torch.randn(1, 4, 8, 8, generator=g)
        x = one.repeat(batch, 1, 1, 1)  # of one seed each
        text = {b: torch.randn(1, 3, 6, generator=g).repeat(batch, 1, 1) for b in "uc"}
        self.scheduler.set_timesteps(steps)
        self.seen = []
        for i, t in enumerate(self.scheduler.timesteps):
            for _ in range(self.more(i)):
                self._predict(x, t, text["c"])
            if self.apart:
                eps = {b: self._predict(x, t, text[b]) for b in "cu"}
            else:
                both = torch.cat([text[b] for b in self.order])
                halves = self._predict(torch.cat([x, x]), t, both).chunk(2)
                if self.again(i):
                    halves = self._predict(0.9 * torch.cat([x, x]), t, both).chunk(2)
                eps = dict(zip(self.order, halves, strict=True))
            w = guidance(i) if callable(guidance) else guidance
            self.seen.append(torch.cat([eps["u"], eps["c"]]).clone())
            x = self._next(self.after(eps["u"] + w * (eps["c"] - eps["u"])), t, x)
        return x

    def _predict(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        x = self.scheduler.scale_model_input(x, t)
        return self.unet(x, t.float() / 500, encoder_hidden_states=text, return_dict=False)[0]

    def _next(self, guided: torch.Tensor, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.scheduler.step(guided, t, x).prev_sample


class Telling(Guiding):
    """The same, with an attribute, which does not tell the truth."""

    guidance_scale = 1.0


class Unscheduled(Guiding):
    """The same, with a sampler of its own."""

    def _next(self, guided: torch.Tensor, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return x - guided / STEPS
