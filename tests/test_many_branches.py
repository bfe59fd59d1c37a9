"""Any number of branches: calls of a step, or rows of one call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch.testing import assert_close

import hybridiff_compile
from tests import toy
from tests.reference import one_thread

STEPS = 4


class Many:
    """Guides by several texts.

    Args:
        lengths: of the texts, one a branch.
        together: in one call, of which the texts are of one length.
    """

    def __init__(self, lengths: list[int], together: bool = False) -> None:
        self.unet: Any = toy.seeded(toy.Toy)
        self.scheduler: Any = DDIMScheduler(beta_schedule="scaled_linear")
        self.lengths, self.together = lengths, together

    @torch.no_grad()
    def __call__(self) -> torch.Tensor:
        g = torch.Generator().manual_seed(0)
        x = torch.randn(1, 4, 8, 8, generator=g)
        texts = [torch.randn(1, n, 6, generator=g) for n in self.lengths]
        self.scheduler.set_timesteps(STEPS)
        for t in self.scheduler.timesteps:
            if self.together:
                eps = self.predict(torch.cat([x] * len(texts)), t, torch.cat(texts)).split(1)
            else:
                eps = [self.predict(x, t, text) for text in texts]
            guided = eps[0] + sum((one - eps[0] for one in eps[1:]), 0 * eps[0])
            x = self.scheduler.step(guided, t, x).prev_sample
        return x

    def predict(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.unet(x, t / 500.0, encoder_hidden_states=text, return_dict=False)[0]


def plain(*how: Any) -> torch.Tensor:
    """What the pipeline itself makes, on one thread."""
    with one_thread():
        return Many(*how)()


@pytest.mark.parametrize("lengths", [[3] * 4, [3] * 5, [3] * 7, [3, 4, 5], [6, 3, 3, 4, 5]])
def test_calls_of_any_number_have_the_bits_of_the_pipeline(lengths):
    expected = plain(lengths)
    with hybridiff_compile.optimize(Many(lengths), mode="exact") as model:
        for _ in range(2):
            assert torch.equal(model(), expected)
            assert (model.report.ranks, len(model.report.steps)) == (2, STEPS - 1)


@pytest.mark.parametrize("count", [5, 7])
def test_rows_of_any_number_have_the_bits_of_calls(count):
    lengths = [3] * count
    with hybridiff_compile.optimize(Many(lengths, True), mode="exact") as model:
        made = model()
        assert (model.report.ranks, len(model.report.steps)) == (2, STEPS)
    assert torch.equal(made, plain(lengths))
    assert_close(made, plain(lengths, True), atol=1e-5, rtol=1e-5)
