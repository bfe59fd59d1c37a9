"""The colours that the images share, and how they are written."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

INK, QUIET, GRID, PAPER = "#1d2433", "#667085", "#e6e8ee", "#ffffff"
_DPI = 160


def save(figure: Figure, path: Path) -> None:
    """Write a figure, and the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
