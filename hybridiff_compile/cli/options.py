"""Options that several commands take, and what `--quick` makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

import typer

#: Pictures that each mode of a tiny model makes in a demo, and how few show the same.
PROMPTS, QUICK_PROMPTS = 24, 3
NAMES = "tiny-sdxl, tiny-sd3 or sdxl-small"
Model = Annotated[str | None, typer.Option(help=f"An embedded model: {NAMES}.")]
Pipe = Annotated[Path | None, typer.Option(help="Folder of a saved pipeline, in place of a model.")]
Mode = Annotated[str, typer.Option(help="hybrid, exact, paper, guided or forecast.")]
Link = Annotated[
    str, typer.Option(help="pcie3, pcie4 or nvlink; of this device also here: measured.")
]
Height = Annotated[int | None, typer.Option(help="Of the pictures, pixels.")]
Width = Annotated[int | None, typer.Option(help="Of the pictures, pixels.")]
Images = Annotated[int, typer.Option(help="Pictures for each prompt.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps of the calls.")]
Quick = Annotated[
    bool, typer.Option("--quick", help="At most 3 minutes on 2 slow cores; the table says how.")
]

_Value = TypeVar("_Value")


class Thinned:
    """What `--quick` takes in place of a default that the user left, and its words for the table.

    Args:
        quick: whether it was asked for.
    """

    def __init__(self, quick: bool) -> None:
        self._quick, self._said = quick, list[str]()

    def __call__(self, what: str, given: _Value | None, usual: _Value, less: _Value) -> _Value:
        """What was given; else less of it, noted, or the usual."""
        if given is not None:
            return given
        if self._quick:
            self.note(f"{what} {less} in place of {usual}")
            return less
        return usual

    def note(self, words: str) -> None:
        """Note that something else is left out."""
        self._said.append(words)

    @property
    def words(self) -> str:
        """All of it, in a line; nothing unless it was asked for."""
        return f"quick: {', '.join(self._said) or 'nothing left out'}" if self._quick else ""
