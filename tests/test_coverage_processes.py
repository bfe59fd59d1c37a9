"""examples/coverage.py: what dies or hangs costs one row, and a run that was stopped goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

TESTS = """
import os, signal, time
import torch
from diffusers import StableDiffusionXLPipeline
from hybridiff_compile.bench import models

class Good:
    pipeline_class = StableDiffusionXLPipeline
    def get_dummy_components(self):
        return models.load("tiny-sdxl").components
    def get_dummy_inputs(self):
        return {"prompt": "a cat", "generator": torch.Generator().manual_seed(0)}

class AlsoGood(Good):
    pass

class Lacking(Good):
    def get_dummy_components(self):
        raise OSError("not on this machine")

class Dying(Good):
    def get_dummy_components(self):
        os.kill(os.getpid(), signal.SIGKILL)

class DyingLate(Good):
    calls = 0
    def get_dummy_inputs(self):
        self.calls += 1
        if self.calls > 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return Good.get_dummy_inputs(self)

class Hanging(Good):
    def get_dummy_components(self):
        time.sleep(600)

class NoPipeline:
    pass
"""


@pytest.mark.slow
def test_a_pipeline_that_dies_or_hangs_costs_one_row(tmp_path: Path) -> None:
    folder = tmp_path / "checkout" / "tests" / "pipelines"
    folder.mkdir(parents=True)
    for package in (folder.parent, folder):
        (package / "__init__.py").touch()
    (folder / "test_some.py").write_text(TESTS)
    (folder / "test_wrong.py").write_text("import no_such_module\n")
    out = tmp_path / "rows.jsonl"
    command = [sys.executable, str(EXAMPLES / "coverage.py"), str(tmp_path / "checkout")]
    command += ["--out", str(out), "--modes", "exact", "--seconds", "60"]
    env = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr  # DyingLate
    text = out.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    found = {line["case"].removeprefix("tests/pipelines/"): line for line in lines}
    why = {case: line["not_built"] for case, line in found.items()}
    assert why == {
        "test_some.py::Good": "",
        "test_some.py::Lacking": "OSError: not on this machine",
        "test_some.py::Dying": "its process ended with -9",
        "test_some.py::DyingLate": "",
        "test_some.py::Hanging": "it took longer than 60 s",
        "test_wrong.py": "ModuleNotFoundError: No module named 'no_such_module'",
    }
    assert found["test_some.py::Good"]["results"]["exact"]["outcome"] == "two ranks"
    late = found["test_some.py::DyingLate"]["results"]["exact"]
    assert (late["outcome"], late["reasons"]) == ("failed", ["its process ended with -9"])
    assert "failed: StableDiffusionXLPipeline" in done.stdout

    page = tmp_path / "page.md"
    page.write_text("<!-- coverage: begin --><!-- coverage: end -->")
    again = subprocess.run([*command, "--page", str(page)], env=env, capture_output=True, text=True)
    assert again.stdout == done.stdout
    assert out.read_text() == text
    assert "two ranks, bits of apart" in page.read_text()
