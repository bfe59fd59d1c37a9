"""The `hybridiff` command."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from hybridiff_compile.errors import HybridiffError


class _Commands(TyperGroup):
    """Commands whose own errors are their message and exit code 2, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except HybridiffError as error:
            Console(stderr=True).print(Text(f"error: {error}", style="red"), soft_wrap=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=_Commands,
    help="One classifier-free-guided diffusion picture on two ranks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        Console().print(f"hybridiff-compile {version('hybridiff-compile')}", highlight=False)
        raise typer.Exit


@app.callback()
def hybridiff(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """One classifier-free-guided diffusion picture on two ranks."""


@app.command()
def demo(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="tiny-sdxl, tiny-sd3 or sdxl-small; give it again for more  [default: both tiny]"
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 50,
    prompts: Annotated[
        int, typer.Option(help="Pictures that each mode of a tiny model makes, and is judged on.")
    ] = 24,
    runs: Annotated[
        int,
        typer.Option(help="Pictures that each mode of sdxl-small makes: noise, for speed only."),
    ] = 3,
    out: Annotated[Path, typer.Option(help="Folder for the images and the table.")] = Path("demo"),
    json: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
) -> None:
    """Run one device, exact and paper side by side: a table, pictures and a plot."""
    # Here, because torch and diffusers take seconds to import, which --help need not wait for.
    from transformers.utils import logging

    # It warns about image processors that no model here has.
    logging.set_verbosity_error()
    from hybridiff_compile.bench import demo as demonstration

    names = tuple(dict.fromkeys(model)) if model else demonstration.DRAWING
    asked = demonstration.Demo(names, steps, prompts, runs, out, json)
    demonstration.run(asked, Console())
