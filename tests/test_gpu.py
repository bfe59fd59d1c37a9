"""Two ranks on CUDA, on one card if there is but one; skipped where there is none."""

from typing import Any

import pytest
import torch

import hybridiff_compile
from hybridiff_compile import ops
from hybridiff_compile.lower import compilations
from tests import pipelines

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def ranks() -> tuple[str, str]:
    return "cuda:0", "cuda:1" if torch.cuda.device_count() > 1 else "cuda:0"


def load(name: str, dtype: torch.dtype) -> Any:
    pipe = pipelines.load(name)
    return pipe.to("cuda:0", dtype)


def apart(name: str, dtype: torch.dtype) -> torch.Tensor:
    """The reference: one device, one branch after the other."""
    with hybridiff_compile.optimize(load(name, dtype), gpus=1) as model:
        return pipelines.latents(model, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["tiny-sdxl", "tiny-sd3"])
def test_exact_has_the_bits_of_the_branches_run_apart(name: str, dtype: torch.dtype) -> None:
    with hybridiff_compile.optimize(load(name, dtype), devices=ranks()) as model:
        result = pipelines.latents(model, name)
        assert ops.unwaited() == 0
    assert torch.equal(result, apart(name, dtype))


def test_paper_pipelines_and_stays_close() -> None:
    name = "tiny-sd3"
    pipe = load(name, torch.float32)
    with hybridiff_compile.optimize(pipe, mode="paper", devices=ranks()) as model:
        result = pipelines.latents(model, name)
        assert model.report.steps_by_phase["pipelined"] > 0
    reference = apart(name, torch.float32)
    assert 0 < (result - reference).abs().max() < reference.abs().max()


@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_compiled_ranks_compute_the_same_and_compile_nothing_later(mode: Any) -> None:
    name = "tiny-sd3"
    pipe = load(name, torch.float32)
    how: dict[str, Any] = {"backend": "inductor", "scope": "regional", "compile_mode": mode}
    with hybridiff_compile.optimize(pipe, devices=ranks(), **how) as model:
        pipelines.latents(model, name)
        compiled = compilations()
        _, result = (pipelines.latents(model, name) for _ in range(2))
        assert compilations() == compiled
    assert (result - apart(name, torch.float32)).abs().max() < 1e-3
