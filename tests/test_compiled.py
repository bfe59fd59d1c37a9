"""Compiled programs: as exact as eager ones, compiled once, and never again."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import hybridiff_compile
from hybridiff_compile import lower, ops
from hybridiff_compile.quality import psnr_db
from hybridiff_compile.runtime import messages
from tests import pipelines

NAME = "tiny-sd3"  # of the call settings; the model is a shallow one of its kind
BLOCKS = 4  # each rank has one that repeats
FORCED = {"mode": "paper", "tau1": 2, "k": 2}
CALL = {"num_inference_steps": 6}
SCOPES = [
    pytest.param("stage", marks=pytest.mark.slow),
    "regional",
    pytest.param("whole", marks=pytest.mark.slow),
]


def picture(model: Any, seed: int = 0, **call: Any) -> torch.Tensor:
    return pipelines.latents(model, NAME, seed, **{**CALL, **call})


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def worker(model: Any) -> messages.Status:
    return model._session.ranks.driver.fleet.ask(messages.Ask())


def compiled(model: Any) -> tuple[int, int]:
    """Graphs compiled by each rank so far."""
    return lower.compilations(), worker(model).compilations


def missed() -> int:
    """Graphs that this process compiled because no cache had them."""
    from torch._dynamo.utils import counters

    return counters["inductor"]["fxgraph_cache_miss"]


@pytest.fixture(scope="module")
def eager() -> tuple[torch.Tensor, Any]:
    """Latents and the picture in [0, 1] of eager programs."""
    with hybridiff_compile.optimize(pipelines.shallow(BLOCKS), **FORCED) as model:
        return picture(model), picture(model, output_type="np")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder for Inductor's kernels, many of which the scopes have in common."""
    return str(tmp_path_factory.mktemp("inductor"))


@pytest.fixture(params=SCOPES, scope="module")
def model(request: pytest.FixtureRequest, cache: str) -> Iterator[Any]:
    """A precompiled model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", cache)
        pipe = pipelines.shallow(BLOCKS)
        settings: Any = {"backend": "inductor", "scope": request.param, **FORCED}
        with hybridiff_compile.optimize(pipe, **settings) as model:
            model.compile(**pipelines.settings(NAME, **CALL))
            yield model


def test_compiled_pictures_are_those_of_eager_programs(
    model: Any, eager: tuple[torch.Tensor, Any]
) -> None:
    latents, shown = eager
    assert relative(picture(model), latents) < 1e-4
    assert model.report.steps_by_phase == {"serial": 4, "pipelined": 2, "forecast": 0}
    again: Any = picture(model, output_type="np")
    assert psnr_db(again, shown) >= 50


def test_20_pictures_compile_nothing_and_leave_nothing(model: Any) -> None:
    picture(model)
    gc.collect()
    before, unwaited = compiled(model), ops.unwaited()
    torch.compiler.set_stance("fail_on_recompile")
    try:
        for seed in range(20):
            picture(model, seed)
    finally:
        torch.compiler.set_stance("default")
    assert min(before) > 0
    assert compiled(model) == before
    assert (ops.unwaited(), worker(model).unwaited) == (unwaited, 0)


@pytest.mark.slow
def test_500_compiled_steps_hold_no_more_memory(model: Any) -> None:
    def held() -> tuple[float, float]:
        gc.collect()
        own = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
        return own, worker(model).rss_mb

    long = {"num_inference_steps": 50}
    for _ in range(3):
        picture(model, **long)
    before, sent = held(), worker(model).sent_bytes
    for _ in range(10):
        picture(model, **long)
    assert worker(model).sent_bytes - sent > 1.5e6
    for now, then in zip(held(), before, strict=True):
        assert now - then < 4


@pytest.mark.slow
def test_ranks_compile_no_stage_twice_and_a_second_start_compiles_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    own, theirs = [], []
    for _ in range(2):
        graphs, misses = lower.compilations(), missed()
        pipe = pipelines.shallow(BLOCKS)
        with hybridiff_compile.optimize(pipe, backend="inductor", **FORCED) as model:
            model.compile(**pipelines.settings(NAME, **CALL))
            own.append((lower.compilations() - graphs, missed() - misses))
            theirs.append(worker(model).compilations)
    assert own == [(2, 1), (2, 0)]  # two stages: one compiled here, one taken from the cache
    assert theirs == [3, 3]  # and the trivial graph that warms the compiler


def test_capture_of_another_shape_compiles_again(model: Any) -> None:
    before = compiled(model)
    larger = picture(model, height=96, width=96)
    assert larger.shape[-1] == 24
    assert all(now > then for now, then in zip(compiled(model), before, strict=True))
