"""A wheel of this package, built from a copy that has lost the link to passes/."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "hybridiff_compile"


def build(copy: Path, *left_out: str) -> Path:
    """Build it.

    Args:
        copy: an empty folder.
        left_out: patterns of files that the copy goes without.
    """
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    (copy / "README.md").touch()
    ignored = shutil.ignore_patterns("__pycache__", "passes", *left_out)
    shutil.copytree(ROOT / PACKAGE, copy / PACKAGE, ignore=ignored)
    shutil.copytree(ROOT / "passes", copy / "passes", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "out"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "would be ignored" not in done.stdout + done.stderr  # `make venv` would print pages
    (path,) = (copy / "out").glob("*.whl")
    return path
