"""How long a step takes on two ranks where a pipeline calls its denoiser once for each branch.

Wan, Qwen-Image, Flux with true guidance and many others do so: there is no batch whose halves two
devices could share, so one device computes two calls in a row. Run it on a quiet machine with
`python examples/sequential.py`, for about two minutes on two cores. Runs take turns; the ratio is
that of one round, and what is printed is the median over rounds. A CPU device is one thread.
"""

from __future__ import annotations

import time
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from rich.console import Console

import hybridiff_compile
from hybridiff_compile.bench import models

ROUNDS, STEPS = 6, 12


class TwoCalls:
    """`sdxl-small`'s denoiser, called for the prompt and then for the negative one at each step."""

    def __init__(self) -> None:
        pipe: Any = models.load("sdxl-small")
        self.unet, self.scheduler = pipe.unet, pipe.scheduler
        with torch.no_grad():
            c, u, pooled, negative = pipe.encode_prompt(prompt="a red circle")
        ids = torch.tensor([[128.0, 128.0, 0.0, 0.0, 128.0, 128.0]])
        self.branches = [
            {"encoder_hidden_states": x, "added_cond_kwargs": {"text_embeds": p, "time_ids": ids}}
            for x, p in ((c, pooled), (u, negative))
        ]
        size = self.unet.config.in_channels, 128 // pipe.vae_scale_factor
        self.shape = (1, size[0], size[1], size[1])

    @torch.no_grad()
    def __call__(self) -> list[float]:
        """Make a picture's latents; returns the seconds of each step but the first two."""
        x = torch.randn(self.shape, generator=torch.Generator().manual_seed(0))
        self.scheduler.set_timesteps(STEPS)
        ends = []
        for t in self.scheduler.timesteps:
            noisy = self.scheduler.scale_model_input(x, t)
            c, u = (self.unet(noisy, t, **b, return_dict=False)[0] for b in self.branches)
            x = self.scheduler.step(u + 5 * (c - u), t, x, return_dict=False)[0]
            ends.append(time.perf_counter())
        self.latents = x
        return [b - a for a, b in pairwise(ends)][1:]


def main() -> None:
    """Measure, and print."""
    console, one, two = Console(), TwoCalls(), TwoCalls()
    torch.set_num_threads(1)
    with hybridiff_compile.optimize(two, mode="exact") as model:
        model()
        rounds = [(median(one()), median(model())) for _ in range(ROUNDS)]
    same = torch.equal(one.latents, two.latents)
    alone, shared = (1000 * median(times) for times in zip(*rounds, strict=True))
    ratio = median(b / a for a, b in rounds)
    console.print(f"one device, two calls in a row: {alone:.1f} ms a step")
    console.print(f"two ranks, a call each: {shared:.1f} ms a step, {ratio:.3f} of that")
    console.print(f"the latents have {'the same bits' if same else 'OTHER BITS'}")


if __name__ == "__main__":
    main()
