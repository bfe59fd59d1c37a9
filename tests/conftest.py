from __future__ import annotations

import gc
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from hybridiff_compile.runtime import spawn
from tests import warm


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--warm", action="store_true", help="fork workers: no import of torch each")


@pytest.fixture(scope="session", autouse=True)
def workers(request: pytest.FixtureRequest) -> Iterator[None]:
    """How the workers of this process are started (see tests/warm.py)."""
    gc.collect()
    gc.freeze()  # what was imported for the tests is not searched again at each capture
    if not request.config.getoption("--warm"):
        yield
        return
    nursery = warm.Nursery()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spawn, "subprocess", warm.replaced(nursery))
        yield
    nursery.close()


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are started as users start them, whatever the tests were told."""
    monkeypatch.setattr(spawn, "subprocess", subprocess)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports modules of the examples by name, as their commands import them."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    yield importlib.import_module
    for name in [n for n in sys.modules if n.startswith(("coverage_", "suite_"))]:
        del sys.modules[name]
