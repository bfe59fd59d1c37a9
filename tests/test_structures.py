"""What a user changes between two pictures is captured once, and its data reach the ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import hybridiff_compile
from hybridiff_compile import structures
from tests import pipelines
from tests.reference import branches_apart

Change = Callable[[Any], None]


def make(pipe: Any) -> torch.Tensor:
    return torch.as_tensor(pipelines.latents(pipe, "small-sdxl", 0, num_inference_steps=2))


def expected(pipe: Any) -> torch.Tensor:
    with branches_apart(pipe.unet):
        return make(pipe)


def captures(caplog: pytest.LogCaptureFixture) -> int:
    return sum(r.message.startswith("captured ") for r in caplog.records)


def _others(module: nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        n: t + 0.01 * torch.randn(t.shape, generator=generator).to(t)
        for n, t in module.state_dict().items()
    }


def _averaged(pipe: Any) -> None:
    """As those do who draw with averaged weights and keep the others: no tensor is copied."""
    for name, tensor in _others(pipe.unet).items():
        pipe.unet.get_parameter(name).data = tensor


def _one_layer(pipe: Any) -> None:
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(1.5)


VALUES: dict[str, Change] = {
    "load_state_dict": lambda pipe: pipe.unet.load_state_dict(_others(pipe.unet)),
    "averaged": _averaged,
    "one layer in place": _one_layer,
}


@pytest.mark.parametrize("change", VALUES.values(), ids=VALUES)
def test_other_values_of_the_weights_reach_both_ranks_without_a_capture(change, caplog):
    caplog.set_level("INFO")
    pipe, plain = pipelines.load("small-sdxl"), pipelines.load("small-sdxl")
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        first = make(model)
        change(pipe)
        change(plain)
        second = make(model)
        assert torch.equal(second, expected(plain))
        assert model.report.ranks == 2
        assert (first - second).abs().max() > 1e-3
    assert captures(caplog) == 1
    assert "captured again" not in caplog.text


def _another(layer: nn.Module) -> nn.Module:
    other = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    return other


def test_going_back_to_a_layer_is_free(caplog):
    caplog.set_level("INFO")
    pipe, plain = pipelines.load("small-sdxl"), pipelines.load("small-sdxl")
    layers = {p: (p.unet.conv_out, _another(p.unet.conv_out)) for p in (pipe, plain)}
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        for turn in (0, 1, 0, 1, 0):
            for each, both in layers.items():
                each.unet.conv_out = both[turn]
            if turn:
                _one_layer(pipe)  # its data change meanwhile
                _one_layer(plain)
            assert torch.equal(make(model), expected(plain))
            assert model.report.ranks == 2
    assert captures(caplog) == 2


def test_going_back_to_a_dtype_is_free(caplog):
    caplog.set_level("INFO")
    pipe, plain = pipelines.load("small-sdxl"), pipelines.load("small-sdxl")
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        for dtype in (torch.float32, torch.bfloat16, torch.float32, torch.bfloat16):
            for each in (pipe, plain):
                each.to(dtype)
            assert torch.equal(make(model), expected(plain))
            assert model.report.ranks == 2
    assert captures(caplog) == 2


def test_a_worker_that_is_gone_meanwhile_is_no_harm(caplog):
    caplog.set_level("INFO")
    pipe, plain = pipelines.load("small-sdxl"), pipelines.load("small-sdxl")
    own = pipe.unet.conv_out, plain.unet.conv_out
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        make(model)
        for each in (pipe, plain):
            each.unet.conv_out = _another(each.unet.conv_out)
        make(model)
        driver = model.session().ranks.driver
        assert driver is not None
        driver.fleet.close()
        _one_layer(pipe)
        _one_layer(plain)
        assert torch.equal(make(model), expected(plain))
        pipe.unet.conv_out, plain.unet.conv_out = own
        assert torch.equal(make(model), expected(plain))
        assert model.report.ranks == 2
    assert captures(caplog) == 2


def test_the_oldest_of_many_is_forgotten(caplog, monkeypatch):
    monkeypatch.setattr(structures, "MOST_KEPT", 2)
    caplog.set_level("INFO")
    pipe, plain = pipelines.load("small-sdxl"), pipelines.load("small-sdxl")
    layers = [copy.deepcopy(pipe.unet.conv_out) for _ in range(4)]
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        for number, count in ((0, 1), (1, 2), (2, 3), (0, 3), (3, 4), (0, 4), (1, 5)):
            pipe.unet.conv_out = layers[number]
            assert torch.equal(make(model), expected(plain))
            assert captures(caplog) == count
        (denoiser,) = model.session().denoisers.values()
        assert len(denoiser.ranks._loaded) == 3
    assert "the oldest is forgotten" in caplog.text
