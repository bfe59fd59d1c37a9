"""Workers that die, drivers that die, Ctrl-C: nothing hangs, nothing is left behind."""

from __future__ import annotations

import contextlib
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
from hybridiff_compile.errors import WorkerError
from hybridiff_compile.runtime import fleet, messages
from tests import pipelines

NAME = "tiny-sd3"
ROOT = Path(__file__).resolve().parents[2]


def is_running(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return False


def wait_until_gone(pid: int, seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_running(pid)


def worker_pid(model: Any) -> int:
    return model._session._driver.fleet._process.pid


@pytest.fixture
def model() -> Iterator[Any]:
    with hybridiff_compile.optimize(pipelines.load(NAME)) as model:
        yield model


def at_step(index: int, act: Any) -> Any:
    def callback(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == index:
            act()
        return values

    return callback


def test_a_worker_that_dies_ends_the_call_and_the_next_one_works(model: Any) -> None:
    before = pipelines.latents(model, NAME)
    pid = worker_pid(model)
    kill = at_step(2, lambda: os.kill(pid, signal.SIGKILL))
    start = time.monotonic()
    with pytest.raises(WorkerError, match=r"rank 1 ended with exit code -9") as error:
        pipelines.latents(model, NAME, callback_on_step_end=kill)
    assert time.monotonic() - start < 30
    assert "It said last" in str(error.value)
    assert wait_until_gone(pid)
    assert torch.equal(pipelines.latents(model, NAME), before)
    assert worker_pid(model) != pid


def test_a_worker_that_fails_shows_its_last_lines(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipelines.latents(model, NAME)
    workers = model._session._driver.fleet
    own = workers.send

    def send(message: messages.Message) -> None:
        # The driver announces one step and stamps another: a guard has to refuse.
        late = isinstance(message, messages.Step)
        own(replace(message, step=message.step + 1) if late else message)

    monkeypatch.setattr(workers, "send", send)
    with pytest.raises(hybridiff_compile.HybridiffError) as error:
        pipelines.latents(model, NAME)
    assert "(phase, step)" in str(error.value)
    assert not workers.is_open


def test_the_worker_ends_with_the_model() -> None:
    model = hybridiff_compile.optimize(pipelines.load(NAME))
    pid = worker_pid(model)
    assert is_running(pid)
    model.close()
    assert wait_until_gone(pid, 6)


def test_a_worker_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "_environment", lambda: {**os.environ, "PYTHONHOME": "/nowhere"})
    with pytest.raises(WorkerError, match="rank 1 ended with exit code 1"):
        hybridiff_compile.optimize(pipelines.load(NAME))


SCRIPT = """
import sys
import hybridiff_compile
from tests import pipelines

def announce(pipe, step, t, values):
    print("step", step, flush=True)
    return values

model = hybridiff_compile.optimize(pipelines.load("tiny-sd3"))
print("worker", model._session._driver.fleet._process.pid, flush=True)
pipelines.latents(model, "tiny-sd3", num_inference_steps=400, callback_on_step_end=announce)
print("end of the script", flush=True)
"""


@contextlib.contextmanager
def script(text: str) -> Iterator[tuple[subprocess.Popen, int]]:
    """Run a script of a user's, in a session of its own like a terminal's."""
    process = subprocess.Popen(
        [sys.executable, "-c", text],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        pid = next(int(line.split()[1]) for line in process.stdout if line.startswith("worker"))
        yield process, pid
    finally:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen, text: str) -> None:
    assert process.stdout is not None
    assert any(line.startswith(text) for line in process.stdout)


def test_ctrl_c_ends_the_run_and_the_worker() -> None:
    with script(SCRIPT) as (process, pid):
        read_until(process, "step 3")
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode != 0
        assert "KeyboardInterrupt" in errors
        assert wait_until_gone(pid)


def test_a_killed_driver_leaves_no_worker() -> None:
    with script(SCRIPT) as (process, pid):
        read_until(process, "step 3")
        process.kill()
        assert wait_until_gone(pid)


def test_a_script_that_forgets_to_close_leaves_no_worker() -> None:
    with script(SCRIPT.replace("num_inference_steps=400", "num_inference_steps=2")) as (
        process,
        pid,
    ):
        read_until(process, "end of the script")
        process.communicate(timeout=30)
        assert process.returncode == 0
        assert wait_until_gone(pid)


def test_a_worker_that_dies_while_connecting_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    own = fleet._hello

    def hello_then_kill(connection: Any, process: subprocess.Popen, log: Path) -> None:
        own(connection, process, log)
        process.kill()

    monkeypatch.setattr(fleet, "_hello", hello_then_kill)
    monkeypatch.setattr(fleet.ops, "CONNECT_TIMEOUT", timedelta(seconds=3))
    start = time.monotonic()
    with pytest.raises(WorkerError, match="rank 1"):
        hybridiff_compile.optimize(pipelines.load(NAME))
    assert time.monotonic() - start < 25
