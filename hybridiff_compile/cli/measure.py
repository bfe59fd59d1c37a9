"""Commands that make pictures and measure: demo, bench, sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from hybridiff_compile.cli import options
from hybridiff_compile.cli.app import app, quiet
from hybridiff_compile.errors import ConfigError


@app.command()
def demo(
    model: Annotated[
        list[str] | None,
        typer.Option(help=f"{options.NAMES}; give it again for more.", show_default="both tiny"),
    ] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 50,
    prompts: Annotated[
        int | None,
        typer.Option(
            help="Pictures that each mode of a tiny model makes, and is judged on.",
            show_default=f"{options.PROMPTS}; with --quick, {options.QUICK_PROMPTS}",
        ),
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(
            help="Pictures that each mode of sdxl-small makes: noise, for speed only.",
            show_default="3",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the images and the table.")] = Path("demo"),
    json: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
    quick: options.Quick = False,
) -> None:
    """Run one device, exact, paper and hybrid side by side: a table, pictures and a plot."""
    quiet()
    from hybridiff_compile.bench import demo as demonstration
    from hybridiff_compile.bench.command import ended_cleanly

    thin, names = options.Thinned(quick), tuple(dict.fromkeys(model or demonstration.DRAWING))
    if any(name in demonstration.DRAWING for name in names):
        prompts = thin("pictures a mode", prompts, options.PROMPTS, options.QUICK_PROMPTS)
    if "sdxl-small" in names:
        runs = thin("pictures a mode of sdxl-small", runs, 3, 1)
    counts = {"prompts": prompts, "runs": runs}
    few: Any = {name: count for name, count in counts.items() if count is not None}
    with ended_cleanly():
        asked = demonstration.Demo(
            models=names, steps=steps, out=out, json=json, thinned=thin.words, **few
        )
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
            help=f"{options.NAMES}, or a pipeline's folder; again for more.", show_default="all"
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="Of the modes on two ranks: inductor or eager.", show_default="inductor"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Denoising steps of a picture.", show_default="50; with --compile, 12"),
    ] = None,
    runs: Annotated[
        int | None, typer.Option(help="Pictures of each row after its first.", show_default="3")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the table and the chart.")] = Path("bench"),
    json: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
    quick: options.Quick = False,
) -> None:
    """Measure one device, exact, paper, hybrid and AsyncDiff's way against each other."""
    quiet()
    from hybridiff_compile.bench import bench as benchmark
    from hybridiff_compile.bench import compare as comparing
    from hybridiff_compile.bench import models
    from hybridiff_compile.bench.command import ended_cleanly

    if compile_ and (compare or backend):
        other = "--compare" if compare else "--backend"
        raise ConfigError(f"--compile and {other}: give one of them; compiling has its own rows.")
    if compare is not None:
        comparing.run(*compare, Console())
        return
    thin, names = options.Thinned(quick), tuple(dict.fromkeys(model or models.NAMES))
    if quick and not model:
        names = ("tiny-sd3",) if compile_ else models.DRAWING
        thin.note(f"no {' and no '.join(n for n in models.NAMES if n not in names)}")
    runs, chosen = thin("pictures a row", runs, 3, 1), backend or "inductor"
    if compile_:
        steps = thin("steps", steps, 12, 6)
        if quick:
            few, all_ = len(benchmark.QUICK), len(benchmark.COMPILED)
            thin.note(f"{few} rows in place of {all_}")
    else:
        chosen = thin("ranks", backend, "inductor", "eager")
        steps = thin("steps", steps, 50, 16)
    how: Any = {"backend": chosen, "out": out, "json": json, "thinned": thin.words}
    with ended_cleanly():
        asked = benchmark.Bench(models=names, compiles=compile_, steps=steps, runs=runs, **how)
        benchmark.run(asked, Console())


@app.command()
def sweep(
    model: Annotated[
        list[str] | None,
        typer.Option(help=f"{options.NAMES}; give it again for more.", show_default="both tiny"),
    ] = None,
    pipe: options.Pipe = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(
            help="exact, paper, guided, forecast, hybrid, asyncdiff.",
            show_default="paper to hybrid",
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
        typer.Option(help="ddim, euler, dpm++2m, flow-euler.", show_default="the pipeline's"),
    ] = None,
    steps: Annotated[
        list[int] | None, typer.Option(help="Denoising steps.", show_default="50")
    ] = None,
    prompts: Annotated[
        int | None,
        typer.Option(help="Pictures that each point makes, 200 at most.", show_default="8"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the plot and the table.")] = Path("sweep"),
    json: Annotated[
        Path | None,
        typer.Option(help="File for the figures.", show_default="figures.json in OUT"),
    ] = None,
    quick: options.Quick = False,
) -> None:
    """Cost against fidelity of each way of switching: a table and a plot.

    Every option of a list may be given again; each mode runs with every combination of those that
    it takes. Without any, the ways that are worth comparing run.
    """
    quiet()
    from hybridiff_compile.bench import grid
    from hybridiff_compile.bench import sweep as sweeping
    from hybridiff_compile.bench.command import ended_cleanly

    points = grid.points(
        mode or (),
        tau1=tau1 or (),
        k=k or (),
        m=m or (),
        tolerance=tolerance or (),
        estimator=estimator or (),
    )
    thin = options.Thinned(quick)
    names = tuple(dict.fromkeys(model or ())) or (() if pipe else sweeping.DRAWING)
    prompts = thin("pictures a point", prompts, 8, 1)
    if quick and not model and not pipe:
        names = names[:1]
        thin.note("no tiny-sd3")
    with ended_cleanly():
        asked = sweeping.Sweep(
            models=names,
            pipe=pipe,
            points=points,
            schedulers=tuple(dict.fromkeys(scheduler or ())),
            steps=tuple(dict.fromkeys(steps or (50,))),
            prompts=prompts,
            out=out,
            json=json,
            thinned=thin.words,
        )
        sweeping.run(asked, Console())
