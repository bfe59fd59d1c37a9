"""A rank is given up for silence, not for work: real processes sleep, compute, stop and hang."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

import hybridiff_compile
from hybridiff_compile.errors import WorkerError
from hybridiff_compile.runtime import spawn
from hybridiff_compile.runtime.pulse import Watch
from tests import pipelines
from tests.runtime.processes import wait_until_gone

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 0.6

RANK = """
import sys, time
from multiprocessing.connection import Connection
from hybridiff_compile.runtime import pulse
{before}
pulse.answer(Connection(int(sys.argv[1])))
print("ready", flush=True)
{then}
"""
SLEEPS = "time.sleep(60)"
COMPUTES = "while True: pass"
# Python's lock is not given up in it, so that no thread can answer.
HOLDS_LOCK = "import re; re.match('(a*)*b', 'a' * 40)"

pytestmark = pytest.mark.usefixtures("cold")  # the start itself is tested


@contextmanager
def watched(
    then: str, before: str = "", deadlines: float = 100
) -> Iterator[tuple[subprocess.Popen, Watch, threading.Event]]:
    """A process, the watch of a wait for it, and an event: it was given up."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", RANK.format(before=before, then=then), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
    given_up = threading.Event()
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    watch = Watch(Connection(ours.detach()), process.pid, DEADLINE, given_up.set)
    try:
        with watch.waiting(deadlines):
            yield process, watch, given_up
    finally:
        watch.stop()
        process.kill()
        process.communicate()


@pytest.mark.parametrize("then", [SLEEPS, COMPUTES, HOLDS_LOCK])
def test_a_rank_that_waits_or_works_is_not_given_up_and_one_that_stops_is(then: str) -> None:
    with watched(then) as (process, watch, given_up):
        assert not given_up.wait(4 * DEADLINE)
        process.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        assert given_up.wait(10 * DEADLINE)
        assert time.monotonic() - stopped > 0.8 * DEADLINE
        assert watch.verdict == "gave no sign of life for 0.6 s"


def test_a_rank_whose_main_thread_hangs_has_a_deadline_too() -> None:
    begin = time.monotonic()
    with watched(SLEEPS, deadlines=3) as (_, watch, given_up):
        assert given_up.wait(30 * DEADLINE)
        assert time.monotonic() - begin > 2.5 * DEADLINE
        assert watch.verdict == "was busy for 1.8 s without an end"


def test_nothing_is_given_up_that_nobody_waits_for() -> None:
    with watched(SLEEPS, deadlines=2) as (process, watch, given_up):
        watch.let_go()
        process.send_signal(signal.SIGSTOP)
        assert not given_up.wait(4 * DEADLINE)


def test_the_time_that_the_driver_itself_was_stopped_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, late = time.monotonic, 0.0
    monkeypatch.setattr(time, "monotonic", lambda: own() + late)
    with watched(SLEEPS) as (_, watch, given_up):
        for _ in range(5):
            late += 100 * DEADLINE
            assert not given_up.wait(0.2 * DEADLINE)
        assert watch.verdict is None


HANGS = """
import time
from hybridiff_compile.runtime.rank import Rank

own = Rank.step

def step(self, key, phase, number, fed):
    time.sleep((1.5, 600)[number])  # seconds: three deadlines, and for good
    return own(self, key, phase, number, fed)

Rank.step = step
"""


def test_a_worker_that_works_longer_than_the_deadline_is_let_be_and_one_that_hangs_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif '--pulse' in sys.orig_argv: import hangs"
    )
    own = spawn.environment
    monkeypatch.setattr(
        spawn,
        "environment",
        lambda: {**(e := own()), "PYTHONPATH": f"{tmp_path}:{e['PYTHONPATH']}"},
    )
    seen: list[int] = []

    def note(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        seen.append(step)
        return values

    with hybridiff_compile.optimize(
        pipelines.load("small-sd3"), mode="exact", deadline=0.5
    ) as model:
        pid = model.session().ranks.driver.fleet._process.pid  # pyright: ignore[reportOptionalMemberAccess]
        says = "rank 1 was busy for 10 s without an end and was given up in phase serial, step 1"
        begin = time.monotonic()
        with pytest.raises(WorkerError, match=says):
            pipelines.latents(model, "small-sd3", num_inference_steps=2, callback_on_step_end=note)
        assert time.monotonic() - begin < 40
        assert seen == [0]
        assert wait_until_gone(pid, 0)
