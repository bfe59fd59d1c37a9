"""Commands that prepare: compile, export, load-check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hybridiff_compile.cli import options
from hybridiff_compile.cli.app import app, quiet


@app.command("compile")
def compile_ahead(
    model: options.Model = None,
    pipe: options.Pipe = None,
    mode: options.Mode = "hybrid",
    backend: Annotated[str, typer.Option(help="inductor or tensorrt.")] = "inductor",
    scope: Annotated[str, typer.Option(help="stage, regional or whole.")] = "stage",
    height: options.Height = None,
    width: options.Width = None,
    images: options.Images = 1,
    steps: options.Steps = None,
) -> None:
    """Compile ahead of the first picture: later processes find it in Inductor's cache."""
    quiet()
    from hybridiff_compile.bench import prepare

    wanted = prepare.Wanted(model, pipe, mode, height, width, images, steps)
    prepare.compile_ahead(wanted, backend, scope, Console())


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="Folder for the package.")],
    model: options.Model = None,
    pipe: options.Pipe = None,
    mode: options.Mode = "hybrid",
    form: Annotated[str, typer.Option("--format", help="aot or onnx.")] = "aot",
    height: options.Height = None,
    width: options.Width = None,
    images: options.Images = 1,
    steps: options.Steps = None,
) -> None:
    """Export a package that another process loads without compiling."""
    quiet()
    from hybridiff_compile.bench import prepare

    wanted = prepare.Wanted(model, pipe, mode, height, width, images, steps)
    prepare.export(wanted, out, form, Console())


@app.command("load-check")
def load_check(
    folder: Annotated[Path, typer.Argument(help="Of a package that export wrote.")],
) -> None:
    """Check every file of a package, and say what is in it."""
    quiet()
    from hybridiff_compile.bench import prepare

    prepare.load_check(folder, Console())
