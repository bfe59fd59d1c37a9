"""Packages loaded into two pipelines of one denoiser: one is refused, or its own weights return."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

import hybridiff_compile
from hybridiff_compile.errors import PackageError
from hybridiff_compile.package.manifest import WEIGHTS
from tests import pipelines


@pytest.fixture
def other(copy: Path, rewrite: Callable[[str, bytes], None]) -> Path:
    """The same package with another value in one of its weights."""
    weights = load_file(copy / WEIGHTS)
    weights["proj_out.bias"] += 1
    rewrite(WEIGHTS, save(weights))
    return copy


def pair() -> list[Any]:
    """Two pipelines of one denoiser, whose weights are no package's."""
    pipe = pipelines.shallow()
    with torch.no_grad():
        pipe.transformer.proj_out.bias.fill_(7)
    return [pipe, type(pipe)(**pipe.components)]


@pytest.mark.parametrize("first_differs", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_denoiser_holds_the_weights_of_one_package_at_a_time(
    exported: tuple[Path, torch.Tensor], other: Path, first_differs: bool
) -> None:
    pipes = pair()
    bias = pipes[0].transformer.proj_out.bias
    folders = [other, exported[0]] if first_differs else [exported[0], other]
    for _ in range(2):  # the second time after a refusal and a restore
        with hybridiff_compile.load(folders[0], pipes[0]):
            loaded = bias.clone()
            with pytest.raises(PackageError, match="holds the weights of another package") as e:
                hybridiff_compile.load(folders[1], pipes[1])
            assert str(folders[1]) in str(e.value)
            assert "proj_out.bias" in str(e.value)
            assert "call restore() on that model first" in str(e.value)
            assert torch.equal(bias, loaded)
            assert not bias.eq(7).any()
        assert bias.eq(7).all()
        with hybridiff_compile.load(folders[1], pipes[1]):
            assert not bias.eq(7).any()
            assert not torch.equal(bias, loaded)
        assert bias.eq(7).all()


@pytest.mark.parametrize("last", [0, 1])
def test_one_package_in_two_pipelines_of_a_denoiser_gives_its_weights_back(
    exported: tuple[Path, torch.Tensor], last: int
) -> None:
    pipes = pair()
    models = [hybridiff_compile.load(exported[0], pipe) for pipe in pipes]
    bias = pipes[0].transformer.proj_out.bias
    assert not bias.eq(7).any()
    models[1 - last].restore()
    models[last].restore()
    assert bias.eq(7).all()
