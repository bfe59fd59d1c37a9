"""Commands that prepare, before the first picture, what takes long: compile, export, load-check."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from hybridiff_compile.cli import options
from hybridiff_compile.cli.app import app, quiet
from hybridiff_compile.errors import ConfigError, HybridiffError

if TYPE_CHECKING:  # torch and diffusers take seconds to import, which --help need not wait for
    from hybridiff_compile import Model
    from hybridiff_compile.bench.wanted import Wanted
    from hybridiff_compile.package.manifest import Call, Manifest

COMPILERS = ("inductor", "tensorrt")


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
    import hybridiff_compile
    from hybridiff_compile.bench import ranks
    from hybridiff_compile.bench.wanted import Wanted

    wanted = Wanted(model, pipe, mode, height, width, images, steps)
    if backend not in COMPILERS:
        raise ConfigError(
            f"backend={backend!r} compiles nothing ahead of a run; choose one of "
            f"{', '.join(COMPILERS)}."
        )
    how: Any = {"mode": mode, "backend": backend, "scope": scope}
    with hybridiff_compile.optimize(wanted.load(), **how) as made:
        seconds = _compiled(made, wanted)
        graphs = ranks.compilations(made)
    console = Console(highlight=False, soft_wrap=True)
    what = f"{wanted.name}, {mode}, {backend}, {scope}"
    console.print(f"{what}: all ranks ready in {seconds:.1f} s, capturing included")
    for rank, count in enumerate(graphs):
        console.print(f"rank {rank}: {count} compiled graphs")
    if backend == "inductor":
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        said = f"the cache is {cache_dir()}; TORCHINDUCTOR_CACHE_DIR chooses another"
        console.print(said, style="dim")


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
    import hybridiff_compile
    from hybridiff_compile.bench.wanted import Wanted

    wanted = Wanted(model, pipe, mode, height, width, images, steps)
    kind: Any = form
    if out.exists():  # known before the minutes that compiling takes
        raise ConfigError(f"{out} exists already; name a new folder for the package.")
    begin = time.perf_counter()
    with hybridiff_compile.optimize(wanted.load(), mode=wanted.mode) as made:
        _compiled(made, wanted)
        hybridiff_compile.export(made, out, format=kind)
    seconds = time.perf_counter() - begin
    said = f"{wanted.name}, {mode}: wrote {out} ({form}) in {seconds:.1f} s"
    Console(highlight=False, soft_wrap=True).print(said)


def _compiled(model: Model, wanted: Wanted) -> float:
    """Seconds until all ranks were ready for the wanted call."""
    begin = time.perf_counter()
    try:
        model.compile(**wanted.call())
    except HybridiffError:
        raise
    except ValueError as e:  # of the pipeline, which checks what it is called with
        raise ConfigError(f"the pipeline refuses this call: {e}") from e
    return time.perf_counter() - begin


@app.command("load-check")
def load_check(
    folder: Annotated[Path, typer.Argument(help="Of a package that export wrote.")],
) -> None:
    """Check every file of a package, and say what is in it."""
    quiet()
    from hybridiff_compile import package

    for line in summary(folder, package.check(folder)):
        Console(highlight=False, soft_wrap=True).print(line)


def summary(folder: Path, made: Manifest) -> list[str]:
    """What a checked package holds, a line for each thing."""
    given = made.switching.model_dump(exclude_none=True)
    switching = ", ".join(f"{name}={value}" for name, value in given.items())
    sizes = {name: (folder / name).stat().st_size for name in sorted(made.files)}
    return [
        f"{folder} is whole: {len(sizes)} files, {_megabytes(sum(sizes.values()))}, as exported",
        f"format      {made.format}, version {made.version}",
        f"made with   torch {made.torch} for {made.device}",
        f"denoiser    {made.denoiser}",
        f"mode        {made.mode}{f' ({switching})' if switching else ''}, {made.ranks} ranks",
        *(f"call {i}      {', '.join(_tensors(call))}" for i, call in enumerate(made.calls)),
        *(f"file        {_megabytes(size):>10}  {name}" for name, size in sizes.items()),
    ]


def _tensors(call: Call) -> Iterator[str]:
    """The tensors of a call as `2x4x8x8 float32`; the noisy picture is the first."""
    from hybridiff_compile.package.manifest import TensorLeaf

    for leaf in call.leaves:
        if isinstance(leaf, TensorLeaf):
            yield f"{'x'.join(map(str, leaf.shape)) or 'scalar'} {leaf.dtype}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
