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


@pytest.fixture
def twins(caplog: pytest.LogCaptureFixture) -> tuple[Any, Any]:
    """A pipeline that is optimized, and one that is not; captures are counted."""
    caplog.set_level("INFO")
    return pipelines.load("small-sdxl"), pipelines.load("small-sdxl")


def both_alike(model: Any, plain: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Two ranks make every step of the next picture as the plain pipeline's rows make it apart."""
    assert torch.equal(make(model), expected(plain))
    assert (model.report.ranks, model.report.unguided) == (2, 0)
    assert "one rank" not in caplog.text


def test_going_back_to_a_layer_is_free(twins, caplog):
    pipe, plain = twins
    layers = {p: (p.unet.conv_out, _another(p.unet.conv_out)) for p in twins}
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        for turn in (0, 1, 0, 1, 0):
            for each, of_each in layers.items():
                each.unet.conv_out = of_each[turn]
                if turn:
                    _one_layer(each)  # its data change meanwhile
            both_alike(model, plain, caplog)
    assert captures(caplog) == 2


def test_going_back_to_a_dtype_is_free(twins, caplog):
    pipe, plain = twins
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        for dtype in (torch.float32, torch.bfloat16, torch.float32, torch.bfloat16):
            for each in twins:
                each.to(dtype)
            both_alike(model, plain, caplog)
    assert captures(caplog) == 2


@pytest.mark.parametrize("change", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("is_first", [True, False], ids=["gone first", "changed first"])
def test_a_worker_that_is_gone_meanwhile_is_no_harm(change, is_first, twins, caplog):
    pipe, plain = twins
    own = pipe.unet.conv_out, plain.unet.conv_out
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        make(model)
        for each in twins:
            each.unet.conv_out = _another(each.unet.conv_out)
        make(model)
        driver = model.session().ranks.driver
        assert driver is not None
        steps = [driver.fleet.close, lambda: [change(each) for each in twins]]
        for step in steps if is_first else reversed(steps):
            step()
        both_alike(model, plain, caplog)
        pipe.unet.conv_out, plain.unet.conv_out = own
        both_alike(model, plain, caplog)
    assert captures(caplog) == 2


@pytest.mark.parametrize("kind", [tuple, list, set, dict.fromkeys])
def test_what_layers_share_they_share_after_a_capture(kind, twins, caplog):
    pipe, plain = twins
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        make(model)
        for each in twins:
            shared, unet = kind([1, 2]), each.unet
            unet.conv_in.note = unet.conv_out.note = (
                shared  # as adapters of a layer have its stride
            )
        both_alike(model, plain, caplog)
        assert pipe.unet.conv_in.note is pipe.unet.conv_out.note
        both_alike(model, plain, caplog)
    assert captures(caplog) == 2


def test_the_oldest_of_many_is_forgotten(twins, caplog, monkeypatch):
    monkeypatch.setattr(structures, "MOST_KEPT", 2)
    pipe, plain = twins
    layers = [copy.deepcopy(pipe.unet.conv_out) for _ in range(4)]
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        for number, count in ((0, 1), (1, 2), (2, 3), (0, 3), (3, 4), (0, 4), (1, 5)):
            pipe.unet.conv_out = layers[number]
            both_alike(model, plain, caplog)
            assert captures(caplog) == count
        (denoiser,) = model.session().denoisers.values()
        assert len(denoiser.ranks._loaded) == 3
    assert "the oldest is forgotten" in caplog.text
