"""Workers that die, drivers that die, Ctrl-C: nothing hangs, nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

import hybridiff_compile
from hybridiff_compile import links, ops
from hybridiff_compile.errors import SpaceError, WorkerError
from hybridiff_compile.runtime import endings, fleet, messages, spawn
from hybridiff_compile.runtime.weights import weights_file
from tests import pipelines
from tests.runtime.processes import (
    at_step,
    is_running,
    read_until,
    script,
    wait_until_gone,
    worker_pid,
)

NAME = "small-sd3"

pytestmark = pytest.mark.usefixtures("cold")  # the start itself is tested


@pytest.fixture
def model() -> Iterator[Any]:
    with hybridiff_compile.optimize(pipelines.load(NAME), mode="exact") as model:
        yield model


def test_a_worker_that_dies_ends_the_call_and_the_next_one_works(model: Any) -> None:
    before, unwaited = pipelines.latents(model, NAME), ops.unwaited()
    pid = worker_pid(model)
    kill = at_step(2, lambda: os.kill(pid, signal.SIGKILL))
    start = time.monotonic()
    with pytest.raises(
        WorkerError, match=r"rank 1 was killed by signal 9 \(SIGKILL; out of"
    ) as error:
        pipelines.latents(model, NAME, callback_on_step_end=kill)
    assert time.monotonic() - start < 30
    assert "It said last" in str(error.value)
    assert ops.unwaited() == unwaited  # torch would warn of them when this process ends
    assert wait_until_gone(pid)
    assert torch.equal(pipelines.latents(model, NAME), before)
    assert worker_pid(model) != pid


def kill_idle_worker(model: Any) -> int:
    pid = worker_pid(model)
    os.kill(pid, signal.SIGKILL)
    assert wait_until_gone(pid)
    return pid


def test_a_worker_that_dies_while_idle_costs_no_call(
    model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    before = pipelines.latents(model, NAME)
    pid = kill_idle_worker(model)
    assert torch.equal(pipelines.latents(model, NAME), before)
    assert worker_pid(model) != pid
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warning == (
        "the worker was killed by signal 9 (SIGKILL; out of memory?) while idle; another is started"
    )


def test_a_pipeline_is_restored_though_its_worker_is_dead(model: Any) -> None:
    pipelines.latents(model, NAME)
    kill_idle_worker(model)
    pipe = model.restore()
    assert torch.isfinite(pipelines.latents(pipe, NAME, num_inference_steps=2)).all()


def test_a_launched_rank_that_died_is_an_error_every_time(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipelines.latents(model, NAME)
    kill_idle_worker(model)
    workers = model._session.ranks.driver.fleet
    monkeypatch.setattr(workers, "_process", None)  # as under torchrun, which also hands out
    monkeypatch.setattr(
        model._session.ranks, "_start", lambda meanwhile: workers
    )  # the same one again
    for _ in range(2):
        with pytest.raises(WorkerError, match=r"which a launcher started, is gone.*Start the scr"):
            pipelines.latents(model, NAME)


def test_modules_in_the_working_directory_do_not_stand_in_for_a_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("random", "torch", "argparse"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a module of the user')")
    monkeypatch.chdir(tmp_path)
    fleet.start(torch.device("cpu"), torch.device("cpu"), lambda: None).close()


def test_a_failure_while_a_worker_starts_ends_it_and_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, popen = [], subprocess.Popen
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(
        subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[0]
    )

    def meanwhile() -> None:
        raise SpaceError("no room")

    with pytest.raises(SpaceError, match="no room"):
        fleet.start(torch.device("cpu"), torch.device("cpu"), meanwhile)
    assert started[0].poll() is not None
    assert not list(tmp_path.iterdir())


def test_a_worker_that_fails_shows_its_last_lines(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipelines.latents(model, NAME)
    workers = model._session.ranks.driver.fleet
    own = workers.send

    def send(message: messages.Message) -> None:
        # The driver announces one step and stamps another: a guard has to refuse.
        late = isinstance(message, messages.Step)
        own(replace(message, step=message.step + 1) if late else message)

    monkeypatch.setattr(workers, "send", send)
    unwaited = ops.unwaited()
    with pytest.raises(hybridiff_compile.HybridiffError) as error:
        pipelines.latents(model, NAME)
    assert "(phase, step)" in str(error.value)
    assert not workers.is_open
    assert ops.unwaited() == unwaited


def test_the_worker_ends_with_the_model() -> None:
    model = hybridiff_compile.optimize(pipelines.load(NAME))
    pid = worker_pid(model)
    assert is_running(pid)
    model.close()
    assert wait_until_gone(pid, 6)


def test_a_worker_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn, "environment", lambda: {**os.environ, "PYTHONHOME": "/nowhere"})
    with pytest.raises(WorkerError, match="rank 1 ended with exit code 1"):
        hybridiff_compile.optimize(pipelines.load(NAME))


SCRIPT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell starts & the tests
import hybridiff_compile
from tests import pipelines

def announce(pipe, step, t, values):
    print("step", step, flush=True)
    return values

model = hybridiff_compile.optimize(pipelines.load("small-sd3"), mode="exact")
print("worker", model._session.ranks.driver.fleet._process.pid, flush=True)
pipelines.latents(model, "small-sd3", num_inference_steps=900, callback_on_step_end=announce)
print("end of the script", flush=True)
"""


def test_ctrl_c_ends_the_run_and_the_worker() -> None:
    with script(SCRIPT) as (process, pid):
        read_until(process, "step 3")
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode != 0
        assert "KeyboardInterrupt" in errors
        assert wait_until_gone(pid)


@pytest.mark.parametrize(
    "steps", [pytest.param(900, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)  # killed in the middle of a step, and between calls
def test_a_killed_driver_leaves_no_worker_and_no_files(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    text = SCRIPT.replace("steps=900", f"steps={steps}") + "import time; time.sleep(60)"
    with script(text) as (process, pid):
        read_until(process, "step 3" if steps > 3 else "end of the script")
        assert list(tmp_path.glob("hybridiff-*"))
        process.kill()
        assert wait_until_gone(pid)
    assert not list(tmp_path.glob("hybridiff-*"))


def test_the_weights_file_has_no_name_that_could_be_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with weights_file() as (_, path):
        assert not list(tmp_path.iterdir())
        path.write_bytes(b"weights")
        read = [sys.executable, "-c", f"print(open({str(path)!r}).read())"]
        assert subprocess.check_output(read) == b"weights\n"  # another process finds it
    assert not path.exists()


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (None, "was ended by the driver"),
        (1, "ended with exit code 1"),
        (-9, "was killed by signal 9 (SIGKILL; out of memory?)"),
        (-11, "was killed by signal 11 (SIGSEGV)"),
        (-40, "was killed by signal 40"),
    ],
)
def test_how_a_worker_ended(code: int | None, says: str) -> None:
    assert endings.ended(code) == says


@pytest.mark.slow
def test_a_script_that_forgets_to_close_leaves_no_worker() -> None:
    with script(SCRIPT.replace("num_inference_steps=900", "num_inference_steps=2")) as (
        process,
        pid,
    ):
        read_until(process, "end of the script")
        process.communicate(timeout=30)
        assert process.returncode == 0
        assert wait_until_gone(pid)


def test_a_worker_that_dies_while_connecting_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    own, killed, spawned, popen = fleet._answer, [], [], subprocess.Popen

    def spawn_and_note(*args: Any, **settings: Any) -> subprocess.Popen:
        spawned.append(popen(*args, **settings))
        return spawned[-1]

    def hello_then_kill(*args: Any) -> None:
        own(*args)
        spawned[-1].kill()
        spawned[-1].wait()  # a dying process may still be connected to, for a moment
        killed.append(time.monotonic())

    monkeypatch.setattr(subprocess, "Popen", spawn_and_note)
    monkeypatch.setattr(fleet, "_answer", hello_then_kill)
    monkeypatch.setattr(links, "CONNECT_TIMEOUT", timedelta(seconds=3))
    with pytest.raises(WorkerError, match="rank 1"):
        hybridiff_compile.optimize(pipelines.load(NAME))
    assert time.monotonic() - killed[0] < 25  # the start before it takes as long as it takes
