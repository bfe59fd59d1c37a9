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

_NAMES = "tiny-sdxl, tiny-sd3 or sdxl-small"
_Model = Annotated[str | None, typer.Option(help=f"An embedded model: {_NAMES}.")]
_Pipe = Annotated[
    Path | None, typer.Option(help="Folder of a saved pipeline, in place of a model.")
]
_Mode = Annotated[str, typer.Option(help="hybrid, exact, paper, guided or forecast.")]
_Link = Annotated[
    str, typer.Option(help="pcie3, pcie4 or nvlink; of this device also here: measured.")
]
_Height = Annotated[int | None, typer.Option(help="Of the pictures, pixels.")]
_Width = Annotated[int | None, typer.Option(help="Of the pictures, pixels.")]
_Images = Annotated[int, typer.Option(help="Pictures for each prompt.")]
_Steps = Annotated[int | None, typer.Option(help="Denoising steps of the calls.")]


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


def _quiet() -> None:
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


@app.command()
def demo(
    model: Annotated[
        list[str] | None,
        typer.Option(help=f"{_NAMES}; give it again for more  [default: both tiny]"),
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
    _quiet()
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
        typer.Option(help=f"{_NAMES}, or a pipeline's folder; again for more  [default: all]"),
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
    _quiet()
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


@app.command("plan")
def plan_ahead(
    model: Annotated[
        list[str] | None,
        typer.Option(help="Architecture or embedded model; again for more [default: sdxl, SD3]"),
    ] = None,
    pipe: _Pipe = None,
    config: Annotated[
        Path | None, typer.Option(help="A denoiser's config.json as diffusers writes it.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="rtx3090, rtx4090, a100, h100, h200, or here: measured.")
    ] = "rtx3090",
    link: _Link = "pcie3",
    height: _Height = None,
    width: _Width = None,
    frames: Annotated[int | None, typer.Option(help="Of a video.")] = None,
    images: _Images = 1,
    steps: _Steps = None,
    k: Annotated[int | None, typer.Option(help="Pipelined steps of the paper's mode.")] = None,
    psnr: Annotated[float, typer.Option(help="How close to one device, dB.")] = 40.0,
    figures: Annotated[
        Path | None, typer.Option(help="Of a sweep: what phases cost in dB [default: ours]")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
) -> None:
    """Predict what two devices make of a model; no weights are needed, nothing is run."""
    _quiet()
    from hybridiff_compile.planning import command

    asked = command.Asked(
        models=tuple(dict.fromkeys(model or ())),
        pipe=pipe,
        config=config,
        device=device,
        link=link,
        settings={
            "height": height,
            "width": width,
            "frames": frames,
            "images": images,
            "num_inference_steps": steps,
            "k": k,
            "psnr_db": psnr,
            "figures": figures,
        },
        json=json,
    )
    command.run(asked, Console())


@app.command()
def profile(
    model: Annotated[str | None, typer.Option(help=_NAMES)] = None,
    pipe: _Pipe = None,
    link: _Link = "here",
    height: _Height = None,
    width: _Width = None,
    images: _Images = 1,
    steps: Annotated[int, typer.Option(help="Denoising steps of a picture.")] = 18,
    runs: Annotated[int, typer.Option(help="Pictures of each kind.")] = 3,
    json: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
) -> None:
    """Measure a pipeline on this machine: what two ranks can make of it, and what holds it back."""
    _quiet()
    from hybridiff_compile.planning import profile_command

    call = {"height": height, "width": width, "num_images_per_prompt": images}
    asked = profile_command.Asked(model, pipe, link, steps, runs, call, json)
    profile_command.run(asked, Console())


@app.command()
def sweep(
    model: Annotated[
        list[str] | None,
        typer.Option(help=f"{_NAMES}; give it again for more  [default: both tiny]"),
    ] = None,
    pipe: _Pipe = None,
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
    _quiet()
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


@app.command("compile")
def compile_ahead(
    model: _Model = None,
    pipe: _Pipe = None,
    mode: _Mode = "hybrid",
    backend: Annotated[str, typer.Option(help="inductor or tensorrt.")] = "inductor",
    scope: Annotated[str, typer.Option(help="stage, regional or whole.")] = "stage",
    height: _Height = None,
    width: _Width = None,
    images: _Images = 1,
    steps: _Steps = None,
) -> None:
    """Compile ahead of the first picture: later processes find it in Inductor's cache."""
    _quiet()
    from hybridiff_compile.bench import prepare

    wanted = prepare.Wanted(model, pipe, mode, height, width, images, steps)
    prepare.compile_ahead(wanted, backend, scope, Console())


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="Folder for the package.")],
    model: _Model = None,
    pipe: _Pipe = None,
    mode: _Mode = "hybrid",
    form: Annotated[str, typer.Option("--format", help="aot or onnx.")] = "aot",
    height: _Height = None,
    width: _Width = None,
    images: _Images = 1,
    steps: _Steps = None,
) -> None:
    """Export a package that another process loads without compiling."""
    _quiet()
    from hybridiff_compile.bench import prepare

    wanted = prepare.Wanted(model, pipe, mode, height, width, images, steps)
    prepare.export(wanted, out, form, Console())


@app.command("load-check")
def load_check(
    folder: Annotated[Path, typer.Argument(help="Of a package that export wrote.")],
) -> None:
    """Check every file of a package, and say what is in it."""
    _quiet()
    from hybridiff_compile.bench import prepare

    prepare.load_check(folder, Console())
