"""A user's installation: the wheel in an environment of its own, and its demo from elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests import wheels


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that holds the wheel; others' packages are those of here."""
    home = tmp_path_factory.mktemp("user") / "venv"
    venv.create(home)
    programs, python = home / "bin", str(home / "bin" / "python")
    # A folder on the path and no more: the links of editable packages in it are not followed.
    packages = sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)})
    Path(packages, "heavy.pth").write_text(sysconfig.get_path("purelib"))
    wheel = wheels.build(tmp_path_factory.mktemp("checkout"))
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps"]
    run([*command, "--no-index", str(wheel)], home)
    return programs


def run(command: list[str], folder: Path) -> str:
    """What a command prints that is run in a folder, and knows nothing of this checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_demo_of_an_installed_wheel_runs_anywhere(installed: Path, tmp_path: Path) -> None:
    where = "import hybridiff_compile as it; print(it.__file__)"
    home = run([str(installed / "python"), "-c", where], tmp_path)
    assert home.startswith(str(installed.parent))
    smallest = ["--model", "tiny-sd3", "--steps", "3", "--prompts", "1"]
    said = run([str(installed / "hybridiff"), "demo", *smallest], tmp_path)
    assert "wrote demo/table.md" in said
    table = (tmp_path / "demo" / "table.md").read_text()
    for mode in ("one-device", "exact", "paper", "hybrid"):
        assert f"| {mode} |" in table
    assert (tmp_path / "demo" / "pictures.png").stat().st_size > 10_000
