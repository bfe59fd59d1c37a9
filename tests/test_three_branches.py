"""Three branches in one batch: as many parts, of which one rank computes two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

import hybridiff_compile
from hybridiff_compile.errors import HybridiffError
from tests import toy
from tests.reference import one_thread

STEPS = 8


class Three:
    """Guides by one batch of three branches, as InstructPix2Pix."""

    def __init__(self, pictures: int = 1, kind: type[nn.Module] = toy.Toy) -> None:
        self.unet: Any = toy.seeded(kind)
        self.scheduler: Any = DDIMScheduler(beta_schedule="scaled_linear")
        self.pictures = pictures

    @torch.no_grad()
    def __call__(self, steps: int = STEPS) -> torch.Tensor:
        g = torch.Generator().manual_seed(0)
        x = torch.randn(self.pictures, 4, 8, 8, generator=g)
        text = torch.randn(3 * self.pictures, 3, 6, generator=g)
        self.scheduler.set_timesteps(steps)
        for t in self.scheduler.timesteps:
            rows = torch.cat([x] * 3)
            (eps,) = self.unet(rows, t / 500.0, encoder_hidden_states=text, return_dict=False)
            c, i, u = eps.chunk(3)
            x = self.scheduler.step(u + 5 * (c - i) + 1.5 * (i - u), t, x).prev_sample
        return x


def in_parts(pipe: Any, parts: Sequence[slice]) -> torch.Tensor:
    """What a pipeline makes whose rows are computed part by part, on one thread."""
    own = pipe.unet.forward

    def forward(x: torch.Tensor, t: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: Any):
        eps = [own(x[p], t, encoder_hidden_states[p], return_dict=False)[0] for p in parts]
        return (torch.cat(eps),)

    pipe.unet.forward = forward
    with one_thread():
        return pipe()


@pytest.mark.parametrize("pictures", [1, 2, 3])
def test_three_branches_of_one_batch_have_the_bits_of_parts(pictures):
    count = 3 if pictures % 2 else 2  # halves are shared better, where there are any
    size = 3 * pictures // count
    expected = in_parts(Three(pictures), [slice(i * size, (i + 1) * size) for i in range(count)])
    with hybridiff_compile.optimize(Three(pictures), mode="exact") as model:
        assert torch.equal(model(), expected)
        assert (model.report.ranks, len(model.report.steps)) == (2, STEPS)


def test_hybrid_extrapolates_three_branches():
    with hybridiff_compile.optimize(Three(), mode="hybrid", tolerance=10.0) as model:
        made = model(steps=30)
        assert model.report.steps_by_phase["forecast"] > 5
    exact = Three()(steps=30)
    assert 0 < (made - exact).abs().max() < 0.5 * exact.abs().max()


@pytest.mark.slow
def test_a_package_holds_three_parts(tmp_path):
    with hybridiff_compile.optimize(Three(), mode="exact") as model:
        made = model()
        hybridiff_compile.export(model, tmp_path / "package", progress=False)
    with hybridiff_compile.load(tmp_path / "package", Three()) as model:
        assert (model() - made).abs().max() < 1e-4
        assert model.report.ranks == 2


def test_what_pipelines_a_batch_of_two_is_not_packaged_of_three(tmp_path):
    with hybridiff_compile.optimize(Three(), mode="paper", tau1=2, k=3) as model:
        model()
        with pytest.raises(HybridiffError, match="pipelines a batch of two branches"):
            hybridiff_compile.export(model, tmp_path / "package")


class Perturbed(toy.Toy):
    """Knows which of its rows mean what, so that a part of them is no batch for it."""

    def forward(self, sample: torch.Tensor, *args: Any, **kwargs: Any):
        plain, image, text = sample.chunk(3)
        return super().forward(torch.cat([plain, image, 0.5 * text]), *args, **kwargs)


@pytest.mark.parametrize("pictures", [1, 2])
def test_rows_that_the_denoiser_tells_apart_are_shared_out(pictures):
    expected = Three(pictures, Perturbed)()
    with hybridiff_compile.optimize(Three(pictures, Perturbed), mode="exact") as model:
        made = model()
        assert (model.report.ranks, len(model.report.steps)) == (2, STEPS)
    with hybridiff_compile.optimize(Three(pictures, Perturbed), mode="exact", gpus=1) as model:
        assert torch.equal(model(), made)
    assert (made - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (made - Three(pictures)()).abs().max() > 1e-2 * expected.abs().max()


def test_the_graphs_of_such_rows_are_no_branches_of_an_onnx_package(tmp_path):
    with hybridiff_compile.optimize(Three(1, Perturbed), mode="exact") as model:
        model()
        with pytest.raises(HybridiffError, match="each has its own graph"):
            hybridiff_compile.export(model, tmp_path / "package", format="onnx")


@pytest.mark.slow
def test_a_package_holds_such_rows(tmp_path):
    with hybridiff_compile.optimize(Three(1, Perturbed), mode="exact") as model:
        made = model()
        hybridiff_compile.export(model, tmp_path / "package", progress=False)
    with hybridiff_compile.load(tmp_path / "package", Three(1, Perturbed)) as model:
        assert (model() - made).abs().max() < 1e-4
        assert model.report.ranks == 2


def test_paper_says_that_such_halves_are_not_pipelined(caplog):
    with hybridiff_compile.optimize(Three(2, Perturbed), mode="paper", tau1=2, k=3) as model:
        model()
        assert model.report.steps_by_phase["pipelined"] == 0
    assert "pipelines a batch of two branches" in caplog.text
