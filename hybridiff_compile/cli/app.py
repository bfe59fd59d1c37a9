"""The application that commands are added to."""

from __future__ import annotations

from importlib.metadata import version
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


def quiet() -> None:
    """Keep transformers from warning about image processors that no model here has."""
    # Here, because torch and diffusers take seconds to import, which --help need not wait for.
    from transformers.utils import logging

    logging.set_verbosity_error()


@app.callback()
def hybridiff(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """One classifier-free-guided diffusion picture on two ranks."""
