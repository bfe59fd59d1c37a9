"""Pictures side by side, as one PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from hybridiff_compile.bench.charts import GRID, INK, PAPER, QUIET, save
from hybridiff_compile.quality import Pictures, to_bytes


@dataclass(frozen=True)
class Shown:
    """A picture and the short note that stands under it."""

    picture: Pictures
    note: str = ""


def pictures_side_by_side(
    path: Path,
    captions: Sequence[str],
    models: Mapping[str, Mapping[str, Sequence[Shown]]],
    footnote: str,
) -> None:
    """Write one PNG: a row for each prompt, and for each model a column for each mode.

    Args:
        path: the PNG.
        captions: the prompts, one a row.
        models: model -> label of the mode -> that mode's picture of every prompt.
        footnote: what the notes under the pictures mean.
    """
    cell, gap, between, top, caption, note = 1.5, 0.12, 0.5, 0.95, 0.36, 0.24
    margin = 0.35
    columns = sum(len(modes) for modes in models.values())
    inner = columns * cell + (columns - len(models)) * gap + (len(models) - 1) * between
    row = caption + cell + note
    width = inner + 2 * margin
    lines = textwrap.wrap(footnote, int(inner / 0.056))
    height = top + len(captions) * row + 0.17 * len(lines) + 1.5 * margin
    figure = Figure(figsize=(width, height), facecolor=PAPER)

    def text(x: float, y: float, words: str, **style: Any) -> None:
        # Inches from the top left corner: all the layout below is in inches.
        figure.text(x / width, 1 - y / height, words, **{"color": INK, **style})

    def picture(x: float, y: float, shown: Shown) -> None:
        axes = figure.add_axes((x / width, 1 - (y + cell) / height, cell / width, cell / height))
        axes.imshow(to_bytes(shown.picture), interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color(GRID)
        text(x + cell / 2, y + cell + 0.16, shown.note, color=QUIET, size=7.5, ha="center")

    for index, words in enumerate(captions):
        text(margin, top + index * row + 0.24, words, size=9.5)
    x = margin
    for name, modes in models.items():
        text(x, 0.42, name, size=14, weight="bold")
        for label, of in modes.items():
            text(x + cell / 2, 0.8, label, size=10, color=QUIET, ha="center")
            for index, shown in enumerate(of):
                picture(x, top + index * row + caption, shown)
            x += cell + gap
        x += between - gap
    for index, words in enumerate(reversed(lines)):
        text(margin, height - margin - 0.17 * index, words, size=8, color=QUIET)
    save(figure, path)
