"""The `hybridiff` command."""

from __future__ import annotations

from hybridiff_compile.cli import measure, predict, prepare  # noqa: F401  (they add their commands)
from hybridiff_compile.cli.app import app

__all__ = ["app"]
