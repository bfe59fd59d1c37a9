"""The `hybridiff` command: each module adds its commands to `app`, in the order of the help."""

from __future__ import annotations

from hybridiff_compile.cli import doctor, measure, predict, prepare, serving
from hybridiff_compile.cli.app import app

__all__ = ["app", "doctor", "measure", "predict", "prepare", "serving"]
