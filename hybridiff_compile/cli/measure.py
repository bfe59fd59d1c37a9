"""Commands that make pictures and measure: demo, bench, sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from hybridiff_compile.cli import options
from hybridiff_compile.cli.app import app, quiet


@app.command()
def demo(
    model: Annotated[
        list[str] | None,
        typer.Option(help=f"{options.NAMES}; give it again for more  [default: both tiny]"),
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
    """Run one device, exact, paper and hybrid side by side: a table, pictures and a plot."""
    quiet()
    from hybridiff_compile.bench import demo as demonstration

    names = tuple(dict.fromkeys(model)) if model else demonstration.DRAWING
    asked = demonstration.Demo(names, steps, prompts, runs, out, json)
    demonstration.run(asked, Console())


@app.command()
def bench(
    compile_: Annotated[
        bool, typer.Option("--compile", help="Measure compiling: cold, warm, loaded, and steps.")
    ] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Compare two files of figures; nothing is measured."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{options.NAMES}, or a pipeline's folder; again for more  [default: all]"
        ),
    ] = None,
    backend: Annotated[
        str, typer.Option(help="Of the modes on two ranks: inductor or eager.")
    ] = "inductor",
    steps: Annotated[
        int | None,
        typer.Option(help="Denoising steps of a picture.  [default: 50; with --compile, 12]"),
    ] = None,
    runs: Annotated[int, typer.Option(help="Pictures of each row after its first one.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder for the table and the chart.")] = Path("bench"),
    json: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
) -> None:
    """Measure one device, exact, paper, hybrid and AsyncDiff's way against each other."""
    quiet()
    from hybridiff_compile.bench import compare as comparing
    from hybridiff_compile.bench import compile_bench, latency_bench, models

    if compare is not None:
        comparing.run(*compare, Console())
        return
    names = tuple(dict.fromkeys(model)) if model else models.NAMES
    if steps is None:
        steps = 12 if compile_ else 50
    if compile_:
        compiling = compile_bench.CompileBench(names, steps, runs, out, json)
        compile_bench.run(compiling, Console())
        return
    chosen: Any = backend
    asked = latency_bench.LatencyBench(names, chosen, steps, runs, out, json)
    latency_bench.run(asked, Console())


@app.command()
def sweep(
    model: Annotated[
        list[str] | None,
        typer.Option(help=f"{options.NAMES}; give it again for more  [default: both tiny]"),
    ] = None,
    pipe: options.Pipe = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(
            help="exact, paper, guided, forecast, hybrid, asyncdiff  [default: paper to hybrid]"
        ),
    ] = None,
    k: Annotated[list[int] | None, typer.Option(help="Steps that are switched.")] = None,
    tau1: Annotated[list[int] | None, typer.Option(help="First step that is switched.")] = None,
    m: Annotated[
        list[int] | None, typer.Option(help="Of m steps one is computed, at the least.")
    ] = None,
    tolerance: Annotated[
        list[str] | None, typer.Option(help="Of hybrid: a number, fine, balanced or fast.")
    ] = None,
    estimator: Annotated[
        list[str] | None, typer.Option(help="hold, linear, sigma, logsnr or quadratic.")
    ] = None,
    scheduler: Annotated[
        list[str] | None,
        typer.Option(help="ddim, euler, dpm++2m, flow-euler  [default: the pipeline's]"),
    ] = None,
    steps: Annotated[list[int] | None, typer.Option(help="Denoising steps  [default: 50]")] = None,
    prompts: Annotated[int, typer.Option(help="Pictures that each point makes, 200 at most.")] = 8,
    out: Annotated[Path, typer.Option(help="Folder for the plot and the table.")] = Path("sweep"),
    json: Annotated[
        Path | None, typer.Option(help="File for the figures  [default: figures.json in OUT]")
    ] = None,
) -> None:
    """Cost against fidelity of each way of switching: a table and a plot.

    Every option of a list may be given again; each mode runs with every combination of those that
    it takes. Without any, the ways that are worth comparing run.
    """
    quiet()
    from hybridiff_compile.bench import grid
    from hybridiff_compile.bench import sweep as sweeping

    points = grid.points(
        mode or (),
        tau1=tau1 or (),
        k=k or (),
        m=m or (),
        tolerance=tolerance or (),
        estimator=estimator or (),
    )
    names = tuple(dict.fromkeys(model or ())) or (() if pipe else sweeping.DRAWING)
    asked = sweeping.Sweep(
        names,
        pipe,
        points,
        schedulers=tuple(dict.fromkeys(scheduler or ())),
        steps=tuple(dict.fromkeys(steps or (50,))),
        prompts=prompts,
        out=out,
        json=json,
    )
    sweeping.run(asked, Console())
