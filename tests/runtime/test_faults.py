"""A worker that is stopped or killed at every moment: nothing hangs, nothing is left, all is said.

Each fault is real: SIGSTOP freezes the process as a wedged driver or a full swap would.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import hybridiff_compile
from hybridiff_compile.errors import WorkerError
from hybridiff_compile.runtime.driver import Driver
from tests import pipelines
from tests.runtime.processes import at_step, wait_until_gone, worker_pid

NAME = "small-sd3"
#: Seconds; a call may take this much longer than its deadline: a new worker, a busy machine.
DEADLINE, SLACK = 1.5, 12.0
KILLED = r"was killed by signal 9 \(SIGKILL; out of memory\?\)"
FROZEN = r"gave no sign of life for 1.5 s and was given up"


def make(pipe: Any, **call: Any) -> torch.Tensor:
    return pipelines.latents(pipe, NAME, num_inference_steps=3, **call)


class Held(NamedTuple):
    """What this process holds of the system's."""

    files: int
    threads: int
    folders: int
    mappings: int
    children: int


def held() -> Held:
    gc.collect()
    own = Path("/proc/self")
    time.sleep(0.05)  # a thread that was joined is still listed for a moment
    return Held(
        len(list((own / "fd").iterdir())),
        len(list((own / "task").iterdir())),
        len(list(Path(tempfile.gettempdir()).glob("hybridiff-*"))),
        sum("hybridiff" in line for line in (own / "maps").read_text().splitlines()),
        len((own / "task" / str(os.getpid()) / "children").read_text().split()),
    )


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture
def model() -> Iterator[Any]:
    with hybridiff_compile.optimize(pipelines.load(NAME), mode="exact", deadline=DEADLINE) as model:
        yield model


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    with hybridiff_compile.optimize(pipelines.load(NAME), mode="exact") as model:
        return make(model)


def hurt(model: Any, how: signal.Signals) -> int:
    pid = worker_pid(model)
    os.kill(pid, how)
    if how == signal.SIGKILL:
        assert wait_until_gone(pid)
    return pid


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.monotonic()
    return call(), time.monotonic() - begin


FAULTS = pytest.mark.parametrize(
    ("how", "cause"),
    [
        pytest.param(signal.SIGSTOP, FROZEN, id="frozen"),
        pytest.param(signal.SIGKILL, KILLED, id="killed"),
    ],
)


@FAULTS
@pytest.mark.parametrize("pictures", [0, 1], ids=["before the first load", "idle"])
def test_a_fault_between_calls_costs_no_picture(
    model: Any,
    picture: torch.Tensor,
    caplog: pytest.LogCaptureFixture,
    how: signal.Signals,
    cause: str,
    pictures: int,
) -> None:
    for _ in range(pictures):
        make(model)
    pid = hurt(model, how)
    after, seconds = timed(lambda: make(model))
    assert torch.equal(after, picture)
    assert (how == signal.SIGSTOP) * DEADLINE * 0.8 < seconds < DEADLINE + SLACK
    (said,) = warnings(caplog)
    assert re.fullmatch(f"the worker {cause} while idle; another is started", said)
    assert wait_until_gone(pid, 0)  # reaped too
    assert worker_pid(model) != pid


@FAULTS
def test_a_fault_in_a_callback_is_an_error_of_the_next_step(
    model: Any, picture: torch.Tensor, how: signal.Signals, cause: str
) -> None:
    make(model)
    pid, act = worker_pid(model), at_step(1, lambda: hurt(model, how))
    begin = time.monotonic()
    says = rf"rank 1 {cause} in phase serial, step 2; the run is lost, the next call start"
    with pytest.raises(WorkerError, match=says) as error:
        make(model, callback_on_step_end=act)
    assert time.monotonic() - begin < DEADLINE + SLACK
    assert "It said last:" in str(error.value)
    fix = "If it was only slow, give optimize() a longer deadline than 1.5 s"
    assert (fix in str(error.value)) == (how == signal.SIGSTOP)
    assert wait_until_gone(pid, 0)
    assert torch.equal(make(model), picture)


@FAULTS
def test_a_fault_in_the_last_callback_costs_no_picture(
    model: Any,
    picture: torch.Tensor,
    caplog: pytest.LogCaptureFixture,
    how: signal.Signals,
    cause: str,
) -> None:
    act = at_step(2, lambda: hurt(model, how))
    after, seconds = timed(lambda: make(model, callback_on_step_end=act))
    assert torch.equal(after, picture)
    assert seconds < DEADLINE + SLACK
    (said,) = warnings(caplog)
    assert re.search(f"the picture is made, .* not known: the worker {cause}$", said)
    assert torch.equal(make(model), picture)


def test_values_that_may_be_on_their_way_still_are_not_called_a_picture(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NCCL, where a step returns before what it received is there."""
    make(model)
    driver: Driver = model._session.ranks.driver
    driver.late = True
    pid = worker_pid(model)

    def freeze_and_wait() -> None:
        hurt(model, signal.SIGSTOP)
        # As a driver that waits for its card: the worker is given up though nothing asks it.
        assert wait_until_gone(pid, DEADLINE + SLACK)

    says = f"rank 1 {FROZEN} while idle after phase serial, step 2; the run is lost"
    with pytest.raises(WorkerError, match=says):
        make(model, callback_on_step_end=at_step(2, freeze_and_wait))


@FAULTS
def test_a_fault_within_a_step_is_an_error(
    model: Any,
    picture: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    how: signal.Signals,
    cause: str,
) -> None:
    """The worker has the message of its step, and stops before it has answered on a link."""
    make(model)
    own, hurting = Driver._announce, [1]
    pid = worker_pid(model)

    def announce(self: Driver, message: Any, *rest: Any) -> Any:
        if hurting and message.step == 1:
            hurting.clear()
            os.kill(pid, signal.SIGSTOP)  # so that it is surely in the middle of it
            token = own(self, message, *rest)
            threading.Timer(0.2, os.kill, (pid, how)).start()
            return token
        return own(self, message, *rest)

    monkeypatch.setattr(Driver, "_announce", announce)
    begin = time.monotonic()
    with pytest.raises(WorkerError, match=rf"rank 1 {cause} in phase serial, step 1; the"):
        make(model)
    assert time.monotonic() - begin < DEADLINE + SLACK
    assert torch.equal(make(model), picture)


@FAULTS
def test_a_fault_while_programs_are_made_is_an_error(
    model: Any,
    picture: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    how: signal.Signals,
    cause: str,
) -> None:
    own, pid = Driver.load, worker_pid(model)

    def load(self: Driver, *args: Any) -> None:
        if worker_pid(model) == pid:
            hurt(model, how)
        own(self, *args)

    monkeypatch.setattr(Driver, "load", load)
    begin = time.monotonic()
    says = f"rank 1 {cause} while it made its programs ready; the run is lost"
    with pytest.raises(WorkerError, match=says):
        make(model)
    assert time.monotonic() - begin < DEADLINE + SLACK
    assert torch.equal(make(model), picture)


@pytest.mark.usefixtures("cold")
def test_a_worker_frozen_while_it_starts_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    spawned, popen = [], subprocess.Popen

    def frozen(*args: Any, **settings: Any) -> subprocess.Popen:
        spawned.append(popen(*args, **settings))
        spawned[-1].send_signal(signal.SIGSTOP)
        return spawned[-1]

    before = held()
    monkeypatch.setattr(subprocess, "Popen", frozen)
    begin = time.monotonic()
    with pytest.raises(WorkerError, match=f"rank 1 {FROZEN} while it started; it did not start"):
        hybridiff_compile.optimize(pipelines.load(NAME), deadline=DEADLINE)
    assert time.monotonic() - begin < DEADLINE + SLACK
    assert spawned[0].returncode == -signal.SIGKILL
    assert held()[2:] == before[2:]


def test_a_frozen_worker_holds_up_no_restore(model: Any) -> None:
    make(model)
    pid = hurt(model, signal.SIGSTOP)
    _, seconds = timed(model.restore)
    assert seconds < SLACK
    assert wait_until_gone(pid, 0)


@pytest.mark.parametrize("deaths", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_nothing_grows_with_the_number_of_deaths(deaths: int) -> None:
    pipe = pipelines.load(NAME)
    with hybridiff_compile.optimize(pipe, mode="exact", deadline=1.0) as model:
        make(model)  # what torch starts once in a process is there now
    make(pipe)
    before = held()
    with hybridiff_compile.optimize(pipe, mode="exact", deadline=1.0) as model:
        make(model)
        open_ = held()
        for death in range(deaths):
            how = signal.SIGSTOP if death % 3 == 2 else signal.SIGKILL
            if death % 2:  # while idle; else within a call
                hurt(model, how)
            else:
                with pytest.raises(WorkerError):
                    make(model, callback_on_step_end=at_step(0, lambda how=how: hurt(model, how)))
            make(model)
            assert held() == open_, f"after death {death + 1}"
    assert held() == before
