"""Quantised linear layers: their parts are shared with the ranks, and exact keeps their bits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hybridiff_compile
from hybridiff_compile.runtime.weights import Wrapped, attach, publish, weights_of
from tests.loads import switches
from tests.loads.quantized import Int8, quantize
from tests.loads.switches import apart, make

BUILDS = (switches.sdxl, switches.sd3)


def check(build: Callable[[], Any], quantize: Callable[[nn.Module], Any]) -> None:
    """Quantised before optimize, and after it."""
    plain, first, second = build(), build(), build()
    before = apart(plain)
    for pipe in (plain, first):
        quantize(switches.denoiser(pipe))
    expected = apart(plain)
    assert not torch.equal(expected, before)
    with hybridiff_compile.optimize(first, mode="exact") as model:
        assert torch.equal(make(model), expected)
        assert model.report.ranks == 2
    assert torch.equal(apart(first), expected)
    with hybridiff_compile.optimize(second, mode="exact") as model:
        assert torch.equal(make(model), before)
        quantize(switches.denoiser(second))
        assert torch.equal(make(model), expected)
        assert model.report.ranks == 2


@pytest.mark.parametrize(
    "build", [pytest.param(switches.sdxl, marks=pytest.mark.slow), switches.sd3]
)
def test_own_subclass(build: Callable[[], Any]) -> None:
    check(build, quantize)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("name", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
def test_torchao(name: str, build: Callable[[], Any]) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    config = getattr(quantization, name)()
    check(build, lambda module: quantization.quantize_(module, config))


def test_parts_are_mapped_once(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 8, bias=False))
    expected = [weight.clone() for weight in module.parameters()]
    quantize(module)
    (file := tmp_path / "weights").touch()
    manifest, _ = publish(weights_of(module), file)
    assert isinstance(manifest["0.weight"], Wrapped)
    found = attach(file, manifest, torch.device("cpu"))
    assert dict(module.named_parameters()).keys() <= found.keys()
    for (name, own), was in zip(module.named_parameters(), expected, strict=True):
        mapped = found[name]
        if not isinstance(own, Int8):
            assert torch.equal(mapped, own)
            continue
        assert isinstance(mapped, Int8)
        assert torch.equal(mapped.opened(), own.opened())
        assert (mapped.opened() - was).abs().max() < 0.01
        own.numbers.add_(1)  # one memory
        assert torch.equal(mapped.numbers, own.numbers)


def test_a_class_that_lies_on_a_path_added_by_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a notebook does, which puts a folder in `sys.path`."""
    source = Path(sys.modules[Int8.__module__].__file__ or "")
    (tmp_path / "of_my_own.py").write_bytes(source.read_bytes())
    monkeypatch.syspath_prepend(tmp_path)
    import of_my_own  # pyright: ignore[reportMissingImports]

    check(switches.sd3, of_my_own.quantize)
