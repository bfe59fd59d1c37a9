"""What a stranger did to a model: patched, copied, closed, dumped, asked for nothing."""

from __future__ import annotations

import copy
import functools
import logging
import os
import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import hybridiff_compile
from hybridiff_compile.errors import (
    ClosedError,
    ConfigError,
    HybridiffError,
    UnsupportedPipelineError,
)
from hybridiff_compile.runtime.driver import Driver
from tests import pipelines

NAME = "small-sd3"


def make(pipe: Any, **call: Any) -> torch.Tensor:
    return pipelines.latents(pipe, NAME, **{"num_inference_steps": 2, **call})


def test_two_pipelines_are_captured_in_two_threads_at_once() -> None:
    with (
        hybridiff_compile.optimize(pipelines.load(NAME)) as first,
        hybridiff_compile.optimize(pipelines.load(NAME)) as second,
        ThreadPoolExecutor(2) as threads,
    ):
        barrier = threading.Barrier(2)

        def together(model: Any) -> torch.Tensor:
            barrier.wait(60)
            return make(model)

        made = [job.result(120) for job in [threads.submit(together, m) for m in (first, second)]]
        assert torch.equal(*made)


def test_a_forward_replaced_on_the_instance_is_refused_or_run_as_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pipe = pipelines.load(NAME)
    own = pipe.transformer.forward

    @functools.wraps(own)
    def mine(*args: Any, **kwargs: Any) -> Any:
        return own(*args, **kwargs)

    pipe.transformer.forward = mine
    with pytest.raises(UnsupportedPipelineError, match=r"the forward of this SD3.* was replaced"):
        hybridiff_compile.optimize(pipe, gpus=1)
    assert vars(pipe.transformer)["forward"] is mine
    del pipe.transformer.forward
    with hybridiff_compile.optimize(pipe, gpus=1) as model:
        ours = pipe.transformer.forward
        pipe.transformer.forward = functools.wraps(ours)(lambda *a, **k: ours(*a, **k))
        make(model)
        assert "one rank runs this pipeline: the forward of this SD3" in caplog.text
        pipe.transformer.forward = ours


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_of_the_denoiser_itself_are_refused_or_run_as_they_are(
    register: str, caplog: pytest.LogCaptureFixture
) -> None:
    counted = []

    def twice(*_: Any) -> None:
        counted.append(1)

    pipe = pipelines.load(NAME)
    handle = getattr(pipe.transformer, register)(twice)
    with pytest.raises(UnsupportedPipelineError, match=r"forward hooks of its own \(.*twice\)"):
        hybridiff_compile.optimize(pipe, gpus=1)
    handle.remove()
    with hybridiff_compile.optimize(pipe, gpus=1) as model:
        handle = getattr(pipe.transformer, register)(twice)
        make(model)
        handle.remove()
    assert counted
    assert "one rank runs this pipeline: this SD3Transformer2DModel has forward" in caplog.text


@pytest.mark.slow
def test_a_deep_copy_is_a_pipeline_of_its_own() -> None:
    pipe = pipelines.load(NAME)
    own_class = type(pipe)
    with hybridiff_compile.optimize(pipe) as model:
        made = make(model)
        other = copy.deepcopy(pipe)
        with torch.no_grad():
            for parameter in other.transformer.parameters():
                parameter.mul_(1.01)
        report = model.report
        changed = make(other)
        assert model.report is report  # the copy's call was none of the model's
        assert (changed - made).abs().max() > 1e-3
        with hybridiff_compile.optimize(other) as second:
            assert (make(second) - changed).abs().max() < 1e-4
            assert torch.equal(make(model), made)
        assert type(other) is own_class
        assert "forward" not in vars(other.transformer)
        with pytest.raises(ConfigError, match="optimized already"):
            hybridiff_compile.optimize(pipe)
    assert type(pipe) is own_class


def test_restore_in_another_thread_waits_for_the_call() -> None:
    model = hybridiff_compile.optimize(pipelines.load(NAME))
    alone, closing = make(model, num_inference_steps=6), []

    def close(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            closing.append(other.submit(model.restore))
            with pytest.raises(TimeoutError):
                closing[0].result(0.5)
        return values

    with ThreadPoolExecutor(1) as other:
        made = make(model, num_inference_steps=6, callback_on_step_end=close)
        closing[0].result(30)
    assert torch.equal(made, alone)
    with pytest.raises(ClosedError):
        model.session()


def test_a_call_of_the_denoiser_in_another_thread_is_no_step() -> None:
    with hybridiff_compile.optimize(pipelines.load(NAME), gpus=1) as model:
        pipe: Any = model.pipe
        denoiser, seen, inputs = pipe.transformer, [], []

        def call(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
            seen.append(threads.submit(torch.no_grad()(denoiser), **inputs[0]).result(30))
            return values

        def note(module: Any, args: Any, kwargs: Any) -> None:
            inputs.append(kwargs)

        plain = pipelines.load(NAME)
        plain.transformer.register_forward_pre_hook(note, with_kwargs=True)
        make(plain)
        with ThreadPoolExecutor(1) as threads:
            make(model, callback_on_step_end=call)
        assert len(seen) == len(model.report.steps) == 2


def test_a_worker_that_dies_after_the_last_step_costs_no_picture(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with hybridiff_compile.optimize(pipelines.load(NAME), mode="exact") as model:
        alone = make(model)
        asked, own = [], Driver.traffic

        def traffic(self: Driver) -> Any:
            asked.append(1)
            if len(asked) == 2:
                process: Any = self.fleet._process
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
            return own(self)

        monkeypatch.setattr(Driver, "traffic", traffic)
        assert torch.equal(make(model), alone)
        (said,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        assert said.startswith("the picture is made, but the bytes sent for it are not known")
        assert "killed by signal 9 (SIGKILL; out of memory?)" in said
        assert (len(model.report.steps), model.report.bytes_sent) == (2, 0)
        assert model.report.worker_rss_mb == ()
        assert torch.equal(make(model), alone)


def test_a_dump_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    pipe, file = pipelines.load(NAME), tmp_path / "file"
    file.touch()
    unwritable: Any = [
        (3, "dump=3 is not a path"),
        (file, "is no folder that can be written to .File exists"),
        (file / "inner", "is no folder .*Not a directory"),
        ("/proc/nowhere", "dump='/proc/nowhere' is no folder .*pass another"),
        ("a\0b", "cannot be a path; name a folder"),
    ]
    for dump, says in unwritable:
        with pytest.raises(ConfigError, match=says):
            hybridiff_compile.optimize(pipe, gpus=1, dump=dump)


def test_compile_leaves_the_callers_random_numbers_alone() -> None:
    with hybridiff_compile.optimize(pipelines.load(NAME)) as model:
        before = torch.get_rng_state()
        model.compile(**pipelines.settings(NAME, generator=None))
        assert torch.equal(torch.get_rng_state(), before)
        make(model, generator=None)  # a picture does take some
        assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("gpus", "scale", "says", "lacks"),
    [
        (1, 5.0, "nothing to prepare: gpus=1", "a model of one rank has no programs"),
        (2, 1.0, "nothing to prepare: it is called once a step", "no guided call was"),
    ],
)
def test_what_has_no_programs_says_so(
    gpus: int, scale: float, says: str, lacks: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with hybridiff_compile.optimize(pipelines.load(NAME), gpus=gpus) as model:
        for _ in range(2):
            model.compile(**pipelines.settings(NAME, guidance_scale=scale))
        (said,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        assert re.search(says, said)
        with pytest.raises(HybridiffError, match=f"there are no graphs: {lacks}"):
            model.graphs()
        with pytest.raises(ConfigError, match=f"there is nothing to export: {lacks}"):
            hybridiff_compile.export(model, tmp_path / "package")
