"""Print the oldest versions that pyproject.toml allows, one requirement a line; torch apart."""

import sys
import tomllib
from pathlib import Path

# They need a GPU, or are named with one version already.
LEFT_OUT = ("torch-tensorrt", "ruff", "pyright", "hybridiff-compile")


def oldest(settings: dict) -> list[str]:
    """Every requirement of a project, of its extras and of its build, at its lower bound."""
    project = settings["project"]
    wanted = project["dependencies"] + settings["build-system"]["requires"]
    wanted += [need for needs in project["optional-dependencies"].values() for need in needs]
    bounds = [need.replace(">=", "==") for need in wanted if not need.startswith(LEFT_OUT)]
    return [need for need in bounds if not need.startswith("torch==")]


if __name__ == "__main__":
    settings = tomllib.loads(Path("pyproject.toml").read_text())
    sys.stdout.write("\n".join(oldest(settings)) + "\n")
