"""Helpers of the tests that stop, kill and watch processes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    return model._session.ranks.driver.fleet._process.pid


def at_step(index: int, act: Any) -> Any:
    def callback(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == index:
            act()
        return values

    return callback


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
