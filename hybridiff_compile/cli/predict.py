"""Commands that predict: plan, profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hybridiff_compile.cli import options
from hybridiff_compile.cli.app import app, quiet


@app.command("plan")
def plan_ahead(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Architecture or embedded model; again for more.", show_default="sdxl, sd3-medium"
        ),
    ] = None,
    pipe: options.Pipe = None,
    config: Annotated[
        Path | None, typer.Option(help="A denoiser's config.json as diffusers writes it.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="rtx3090, rtx4090, a100, h100, h200, or here: measured.")
    ] = "rtx3090",
    link: options.Link = "pcie3",
    height: options.Height = None,
    width: options.Width = None,
    frames: Annotated[int | None, typer.Option(help="Of a video.")] = None,
    images: options.Images = 1,
    steps: options.Steps = None,
    k: Annotated[int | None, typer.Option(help="Pipelined steps of the paper's mode.")] = None,
    psnr: Annotated[float, typer.Option(help="How close to one device, dB.")] = 40.0,
    figures: Annotated[
        Path | None, typer.Option(help="Of a sweep: what phases cost in dB.", show_default="ours")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
) -> None:
    """Predict what two devices make of a model; no weights are needed, nothing is run."""
    quiet()
    from hybridiff_compile.bench.command import ended_cleanly
    from hybridiff_compile.planning import command

    settings = {
        "device": device,
        "link": link,
        "height": height,
        "width": width,
        "frames": frames,
        "images": images,
        "num_inference_steps": steps,
        "k": k,
        "psnr_db": psnr,
        "figures": figures,
    }
    names = tuple(dict.fromkeys(model or ()))
    with ended_cleanly():
        command.plan_models(names, pipe, config, settings, json, Console())


@app.command()
def profile(
    model: Annotated[str | None, typer.Option(help=options.NAMES)] = None,
    pipe: options.Pipe = None,
    link: options.Link = "here",
    height: options.Height = None,
    width: options.Width = None,
    images: options.Images = 1,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps of a picture.", show_default="18")
    ] = None,
    runs: Annotated[
        int | None, typer.Option(help="Pictures of each kind.", show_default="3")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="File for the figures.")] = None,
    quick: options.Quick = False,
) -> None:
    """Measure a pipeline on this machine: what two ranks can make of it, and what holds it back."""
    quiet()
    from hybridiff_compile.bench.command import ended_cleanly
    from hybridiff_compile.planning import command

    thin = options.Thinned(quick)
    settings = {
        "link": link,
        "height": height,
        "width": width,
        "num_images_per_prompt": images,
        "num_inference_steps": thin("steps", steps, 18, 9),
        "rounds": thin("pictures of each kind", runs, 3, 1),
    }
    with ended_cleanly():
        command.profile_pipeline(model, pipe, settings, json, Console(), thin.words)
