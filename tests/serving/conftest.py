"""A server of its own process, as a user starts it."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from openai import AsyncOpenAI, OpenAI

_COMMAND = "from hybridiff_compile.cli import app; app()"


@dataclass(frozen=True)
class Server:
    """A server that is ready.

    Attributes:
        process: of it.
        url: without a slash at its end.
        log: what it printed.
    """

    process: psutil.Popen
    url: str
    log: Path

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def async_client(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def worker(self) -> psutil.Process:
        (found,) = (p for p in self.process.children() if "hybridiff_compile.worker" in p.cmdline())
        return found


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Server]:
    log = folder / "log"
    command = [sys.executable, "-c", _COMMAND, "serve", "--port", "0", *options]
    with log.open("w") as file:
        process = psutil.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield Server(process, _address(process, log), log)
    finally:
        if process.poll() is None:
            workers = process.children()
            process.terminate()
            _, hanging = psutil.wait_procs([process, *workers], timeout=60)
            for one in hanging:
                one.kill()
            assert not hanging


def _address(process: psutil.Popen, log: Path) -> str:
    for _ in range(600):
        if found := re.search(r"serving \S+ on (http\S+)", log.read_text()):
            return found[1]
        if process.poll() is not None:
            break
        time.sleep(0.2)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("serve"), "--model", "tiny-sd3") as ready:
        yield ready


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., object]:
    return lambda *options: serving(tmp_path, *options)
