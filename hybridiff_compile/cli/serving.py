"""The command that serves: serve."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from hybridiff_compile.cli import options
from hybridiff_compile.cli.app import app, quiet
from hybridiff_compile.errors import BackendError


@app.command()
def serve(
    model: options.Model = None,
    pipe: options.Pipe = None,
    mode: options.Mode = "hybrid",
    gpus: Annotated[int, typer.Option(help="Ranks: 2, or 1.")] = 2,
    backend: Annotated[str, typer.Option(help="eager, inductor or tensorrt.")] = "eager",
    device: Annotated[
        str | None,
        typer.Option(help="That the pipeline is put on, as cuda.", show_default="the CPU"),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, float16 or bfloat16.", show_default="as the pipeline is loaded"
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            help="WxH that clients may ask for; again for more.", show_default="the model's"
        ),
    ] = None,
    steps: options.Steps = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    queue: Annotated[int, typer.Option(help="Requests that may wait; more get a 429.")] = 64,
    drain: Annotated[int, typer.Option(help="Seconds that requests have after SIGTERM.")] = 60,
) -> None:
    """Serve pictures over HTTP, as OpenAI's images API asks for them; needs the extra `serve`."""
    quiet()
    try:
        from hybridiff_compile.serving import serve as serving
    except ModuleNotFoundError as e:
        raise BackendError(
            f"serving needs {e.name}; install it with pip install 'hybridiff-compile[serve]'."
        ) from e
    from hybridiff_compile.bench.wanted import Wanted

    wanted = Wanted(model, pipe, mode, steps=steps)
    asked = serving.Serving(
        wanted, tuple(size or ()), gpus, backend, device, dtype, host, port, queue, drain
    )
    serving.run(asked, Console())
