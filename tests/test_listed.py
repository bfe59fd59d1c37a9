"""Pipelines whose pictures are a list: texts of several lengths, a picture each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

import hybridiff_compile
from hybridiff_compile.errors import HybridiffError
from tests import toy

STEPS = 8


class Listed(nn.Module):
    """Takes and returns lists; pads the texts to the longest, and does not look at that."""

    def __init__(self) -> None:
        super().__init__()
        self.unet, self.together = toy.seeded(toy.Toy), 0.0

    def forward(
        self, x: list[torch.Tensor], t: torch.Tensor, texts: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor]]:
        lengths = torch.tensor([[[len(text)]] for text in texts])
        padded = nn.utils.rnn.pad_sequence(texts, batch_first=True)
        padded = padded * padded.shape[1] / lengths  # the mean of a text, whatever was added
        (eps,) = self.unet(torch.stack(x), t[:, None], padded, return_dict=False)
        return self.put_together([one + self.together * eps.mean() for one in eps])

    def put_together(self, eps: list[torch.Tensor]) -> Any:
        return (eps,)


class InTuple(Listed):
    def put_together(self, eps: list[torch.Tensor]) -> Any:
        return (tuple(eps),)


class Stacked(Listed):
    def put_together(self, eps: list[torch.Tensor]) -> Any:
        return (torch.stack(eps),)


class Guided:
    """Guides by one call of a list: all branches of all pictures."""

    def __init__(
        self, pictures: int = 1, together: float = 0.0, kind: type[Listed] = Listed
    ) -> None:
        self.transformer: Any = kind()
        self.transformer.together = together
        self.scheduler: Any = DDIMScheduler(beta_schedule="scaled_linear")
        self.pictures = pictures

    @torch.no_grad()
    def __call__(self, steps: int = STEPS, guidance: float = 5.0) -> torch.Tensor:
        g = torch.Generator().manual_seed(0)
        x = torch.randn(self.pictures, 4, 8, 8, generator=g)
        texts = [torch.randn(n, 6, generator=g) for n in (3, 5, 2, 4)[: 2 * self.pictures]]
        if guidance <= 1:
            texts = texts[: self.pictures]
        self.scheduler.set_timesteps(steps)
        for t in self.scheduler.timesteps:
            rows = list(torch.cat([x] * (len(texts) // self.pictures)))
            times = (t / 500.0).expand(len(rows))
            (eps,) = self.transformer(rows, times, texts=texts)
            c, *u = torch.stack(list(eps)).chunk(len(texts) // self.pictures)
            x = self.scheduler.step(u[0] + guidance * (c - u[0]) if u else c, t, x).prev_sample
        return x


@pytest.mark.parametrize("pictures", [1, 2])
def test_a_list_of_pictures_is_shared_from_the_first_step_on(pictures):
    plain = Guided(pictures)()
    with hybridiff_compile.optimize(Guided(pictures), mode="exact", gpus=1) as model:
        apart = model()
    with hybridiff_compile.optimize(Guided(pictures), mode="exact") as model:
        assert torch.equal(model(), apart)
        assert (model.report.ranks, len(model.report.steps)) == (2, STEPS)
        assert torch.equal(model(), apart)
    assert (apart - plain).abs().max() < 1e-4 * plain.abs().max()


def test_hybrid_extrapolates_a_list_of_pictures():
    with hybridiff_compile.optimize(Guided(), mode="hybrid", tolerance=10.0) as model:
        made = model(steps=30)
        assert model.report.steps_by_phase["forecast"] > 5
    exact = Guided()(steps=30)
    assert 0 < (made - exact).abs().max() < 0.5 * exact.abs().max()


@pytest.mark.parametrize("gpus", [1, 2])
@pytest.mark.parametrize("kind", [InTuple, Stacked])
def test_an_answer_that_is_no_list_is_left_as_it_is(kind, gpus, caplog):
    plain = Guided(kind=kind)()
    with hybridiff_compile.optimize(Guided(kind=kind), mode="exact", gpus=gpus) as model:
        assert torch.equal(model(), plain)
        assert model.report.ranks == 1
    assert "something else than a list of as many" in caplog.text


@pytest.mark.parametrize("together", [1.0, 0.05])
def test_pictures_that_depend_on_each_other_stay_together(together, caplog):
    plain = Guided(together=together)()
    with hybridiff_compile.optimize(Guided(together=together), mode="exact") as model:
        assert torch.equal(model(), plain)
        assert model.report.ranks == 1
    assert "rows depend on each other" in caplog.text


def test_a_list_of_one_picture_is_nothing_to_split(caplog):
    plain = Guided()(guidance=1.0)
    with hybridiff_compile.optimize(Guided(), mode="exact") as model:
        assert torch.equal(model(guidance=1.0), plain)
        assert model.report.ranks == 1
    assert "there is nothing to split" in caplog.text


def test_a_list_of_pictures_is_not_packaged(tmp_path):
    with hybridiff_compile.optimize(Guided(), mode="exact") as model:
        model()
        with pytest.raises(HybridiffError, match="a package holds"):
            hybridiff_compile.export(model, tmp_path / "package")
