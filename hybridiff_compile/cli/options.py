"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
