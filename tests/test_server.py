"""As a server uses it: several models, several threads, calls that must be refused clearly."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import hybridiff_compile
from hybridiff_compile import ops
from hybridiff_compile.errors import ConfigError
from tests import pipelines

NAME = "small-sd3"


def make(pipe: Any, seed: int = 0) -> torch.Tensor:
    return pipelines.latents(pipe, NAME, seed, num_inference_steps=6)


def test_two_models_and_four_threads_at_once() -> None:
    with (
        hybridiff_compile.optimize(pipelines.load(NAME)) as exact,
        hybridiff_compile.optimize(pipelines.load(NAME), mode="paper", tau1=2, k=3) as paper,
    ):
        alone = {model: make(model) for model in (exact, paper)}
        assert not torch.equal(alone[exact], alone[paper])
        with ThreadPoolExecutor(4) as threads:
            jobs = [(m, threads.submit(make, m)) for m in (exact, paper, exact, paper)]
            for model, job in jobs:
                assert torch.equal(job.result(60), alone[model])


def test_compile_in_one_thread_leaves_the_pictures_of_another_alone() -> None:
    with hybridiff_compile.optimize(pipelines.load(NAME)) as model:
        alone = make(model)
        with ThreadPoolExecutor(1) as other:
            job = other.submit(make, model)
            model.compile(**pipelines.settings(NAME))
            assert torch.equal(job.result(60), alone)


@pytest.mark.parametrize(("gpus", "guidance_scale"), [(1, 1.0), (1, 5.0), (2, 1.0)])
def test_compile_never_makes_a_picture(gpus: int, guidance_scale: float) -> None:
    pipe, calls = pipelines.load(NAME), []
    pipe.transformer.proj_out.register_forward_hook(lambda *_: calls.append(1))
    with hybridiff_compile.optimize(pipe, gpus=gpus) as model:
        model.compile(**pipelines.settings(NAME, guidance_scale=guidance_scale))
    assert len(calls) <= 1  # of the first step, which shows how the pipeline guides


def test_a_call_from_its_own_callback_is_refused() -> None:
    with hybridiff_compile.optimize(pipelines.load(NAME), gpus=1) as model:

        def again(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
            make(model)
            return values

        with pytest.raises(ConfigError, match="called from its own callback"):
            pipelines.latents(model, NAME, callback_on_step_end=again)
        assert torch.isfinite(make(model)).all()


def test_autocast_is_refused_because_workers_do_not_see_it() -> None:
    with (
        hybridiff_compile.optimize(pipelines.load(NAME), gpus=1) as model,
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ConfigError, match="autocast does not reach the workers"),
    ):
        make(model)


def test_a_refused_second_optimize_starts_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    from hybridiff_compile.runtime import fleet

    pipe, started = pipelines.load(NAME), threading.Event()
    with hybridiff_compile.optimize(pipe, gpus=1):
        monkeypatch.setattr(fleet, "start", lambda device: started.set())
        with pytest.raises(ConfigError, match="optimized already"):
            hybridiff_compile.optimize(pipe, gpus=2)
    assert not started.is_set()


def test_bytes_are_counted_afresh_after_a_worker_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    # What other models of this process have sent is no part of it.
    monkeypatch.setattr(ops, "_sent_bytes", 10**9)
    with hybridiff_compile.optimize(pipelines.load(NAME)) as model:
        make(model)
        session: Any = model._session
        usual = (make(model), model.report.bytes_sent)[1]
        session.ranks.driver.fleet.close()
        make(model)
        assert abs(model.report.bytes_sent - usual) < 3e6  # less a new copy of the programs
        make(model)
        assert model.report.bytes_sent == pytest.approx(usual, rel=0.01)
