"""One test file of diffusers in processes of its own, for `diffusers_suite.py`.

A process that dies or hangs costs the test it was in; the next process goes on behind it. What a
process leaves behind is found by a mark in its environment.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from suite_report import has_ended, read_lines, unfinished

_MARK = "HYBRIDIFF_SUITE"
_LEFT_SECONDS = 15  # until a worker whose driver is gone must be gone too


@dataclass(frozen=True)
class Way:
    """How a file is run.

    Attributes:
        name: part of the names of what is written.
        options: of the plugin.
    """

    name: str
    options: tuple[str, ...] = ()


def with_us(mode: str, gpus: int, attach: str) -> Way:
    """Every pipeline is optimized."""
    options = ("--suite-mode", mode, "--suite-gpus", str(gpus), "--suite-attach", attach)
    return Way(f"{mode}-{gpus}-{attach}", options)


WITHOUT_US = Way("without")


class StoppedError(Exception):
    """Somebody has stopped the suite."""


@dataclass(frozen=True)
class Suite:
    """Where things are, and how long a test may take.

    Attributes:
        checkout: of diffusers; its tests are run, its sources are not.
        parts: folder for what each file's run has found.
        hub: Hugging Face home with the stand-ins.
        seconds: of a test.
        stop: set by another thread, ends what runs.
    """

    checkout: Path
    parts: Path
    hub: Path
    seconds: float
    stop: threading.Event = field(default_factory=threading.Event)

    def part(self, file: str, way: Way) -> Path:
        """The lines of a file's run."""
        return self.parts / f"{file.replace('/', '+')}.{way.name}.jsonl"

    def run(self, file: str, way: Way) -> None:
        """Run what was not yet run of a file.

        Args:
            file: relative to the checkout.
            way: how.

        Raises:
            StoppedError: `stop` was set; what the test under way had found is dropped.
        """
        part = self.part(file, way)
        part.parent.mkdir(parents=True, exist_ok=True)
        while not has_ended(read_lines(part)):
            cut_off(part)
            mark = secrets.token_hex(8)
            with part.with_suffix(".out").open("ab") as out:
                ended = self._process(file, way, part, mark, out)
            for process in clean_up(mark):
                add(part, event="left", what=f"{file} ({way.name}): {process}")
            lines = read_lines(part)
            if (test := unfinished(lines)) is not None:
                add(part, test=test, outcome="failed", error=f"the process {ended} in this test")
            elif not has_ended(lines):
                add(part, test=file, outcome="failed", error=f"the process {ended}, in no test")
                add(part, event="end")

    def _process(self, file: str, way: Way, part: Path, mark: str, out: IO[bytes]) -> str:
        """One process of pytest; returns how it ended."""
        command = [
            *(sys.executable, "-m", "pytest", "-p", "suite_plugin", file, "--suite-log", str(part)),
            *("-q", "--tb=short", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", "."),
            *("-W", "ignore", "-o", f"timeout={self.seconds}", *way.options),
        ]
        process = subprocess.Popen(
            command,
            cwd=self.checkout,
            env=self._environment(mark),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        # pytest-timeout ends a test that Python can end; this ends what it cannot.
        patience, seen, since = 1.5 * self.seconds + 60, -1, time.monotonic()
        try:
            while process.poll() is None:
                if self.stop.wait(0.2):
                    raise StoppedError
                size = part.stat().st_size if part.exists() else 0
                if size != seen:
                    seen, since = size, time.monotonic()
                elif time.monotonic() - since > patience:
                    kill(process)
                    return f"said nothing for {patience:.0f} s and was killed"
        finally:
            kill(process)
        code = process.returncode
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"

    def _environment(self, mark: str) -> dict[str, str]:
        here = str(Path(__file__).parent)
        paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "HF_HOME": str(self.hub),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            _MARK: mark,
        }


def kill(process: subprocess.Popen) -> None:
    """End a process and its group, if it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def add(part: Path, **line: str) -> None:
    """Add a line to a part."""
    with part.open("a") as out:
        out.write(json.dumps(line) + "\n")


def cut_off(part: Path) -> None:
    """Take off a last line that was not finished."""
    text = part.read_text() if part.exists() else ""
    if text and not text.endswith("\n"):
        part.write_text(text[: text.rfind("\n") + 1])


def clean_up(mark: str) -> list[str]:
    """Wait until all processes of a run are gone; kill those that stay.

    Args:
        mark: of the run, in their environment.

    Returns:
        The command lines of those that stayed. Only where /proc is there; else nothing is seen.
    """
    end = time.monotonic() + _LEFT_SECONDS
    while (found := marked(mark)) and time.monotonic() < end:
        time.sleep(0.1)
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return [f"process {pid}: {command}" for pid, command in found.items()]


def marked(mark: str) -> dict[int, str]:
    """Processes with this mark in their environment: their command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{_MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                found[int(folder.name)] = command or "(no command line)"
        except OSError:  # it has ended, or is not ours
            continue
    return found


def find_files(checkout: Path, wanted: Sequence[str]) -> list[str]:
    """Test files, relative to the checkout, in a stable order.

    Args:
        checkout: of diffusers.
        wanted: files or folders, relative to the checkout or to its tests/pipelines; empty: all.

    Raises:
        ValueError: there is no such file, or it has no pipeline tests at all.
    """
    root = checkout / "tests" / "pipelines"
    if not root.is_dir():
        raise ValueError(f"{checkout} has no tests/pipelines; give a checkout of diffusers.")
    found: dict[str, None] = {}
    for name in wanted or ["."]:
        path = next((p for p in (root / name, checkout / name) if p.exists()), None)
        if path is None:
            raise ValueError(f"{name} is neither in {root} nor in {checkout}.")
        tests = [path] if path.is_file() else sorted(path.rglob("test_*.py"))
        found.update((t.resolve().relative_to(checkout.resolve()).as_posix(), None) for t in tests)
    return list(found)
