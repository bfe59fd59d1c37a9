"""Load a pipeline, make it ready, and serve it until the process is told to end."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import uvicorn
from rich.console import Console

import hybridiff_compile
from hybridiff_compile import arguments
from hybridiff_compile.bench.command import check_least
from hybridiff_compile.bench.wanted import Wanted
from hybridiff_compile.errors import ConfigError, HybridiffError
from hybridiff_compile.serving.app import Images, application
from hybridiff_compile.serving.metrics import Metrics
from hybridiff_compile.serving.studio import Studio
from hybridiff_compile.serving.wanted import Served, in_words, parameters

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Serving:
    """What to serve.

    Attributes:
        of: the pipeline and the mode.
        sizes: "WxH" in pixels, which clients may choose from; () is the pipeline's own size.
        gpus, backend: as in `optimize`.
        device, dtype: that the pipeline is put on, and cast to; None leaves it as it was loaded.
        host, port: to listen on; port 0 takes a free one.
        places: requests that may wait.
        drain: seconds that requests have to end after SIGTERM.
    """

    of: Wanted
    sizes: Sequence[str] = ()
    gpus: int = 2
    backend: Any = "eager"
    device: str | None = None
    dtype: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    places: int = 64
    drain: int = 60

    def __post_init__(self) -> None:
        """Raise ConfigError for what could not be served, before minutes of loading."""
        for size in self.sizes:
            _parsed(size)
        arguments.check_choice("dtype", self.dtype or "float32", DTYPES)
        for name, value in (("queue", self.places), ("drain", self.drain)):
            check_least(name, value, 0)


def run(serving: Serving, console: Console) -> None:
    """Serve until SIGTERM or SIGINT; requests that were taken are answered first.

    Raises:
        ConfigError: a size, a port or a pipeline that cannot be served.
    """
    with closing(_listen(serving.host, serving.port)) as at:
        device = _device(serving.device)
        console.print(f"loading {serving.of.name}", highlight=False)
        pipe = serving.of.load()
        pipe.to(device, serving.dtype and getattr(torch, serving.dtype))
        pipe.set_progress_bar_config(disable=True)
        served = served_of(serving, pipe)
        with hybridiff_compile.optimize(
            pipe, serving.gpus, mode=serving.of.mode, backend=serving.backend
        ) as model:
            for width, height in served.sizes:
                console.print(f"preparing {width} x {height}", highlight=False)
                _prepare(model, {**served.defaults, "width": width, "height": height})
            metrics = Metrics()
            with closing(Studio(model, serving.places, metrics)) as studio:
                app = application(Images(served, studio, metrics))
                host, port = at.getsockname()[:2]
                console.print(f"serving {served.name} on http://{host}:{port}", highlight=False)
                config = uvicorn.Config(
                    app, log_level="warning", timeout_graceful_shutdown=serving.drain
                )
                with _ended_by_signals():
                    uvicorn.Server(config).run(sockets=[at])
        console.print("all requests are answered; the worker has ended", highlight=False)


def _prepare(model: hybridiff_compile.Model, call: dict[str, Any]) -> None:
    try:
        model.compile(**call)
    except HybridiffError:
        raise
    except ValueError as e:  # of the pipeline, which checks what it is called with
        size = in_words((call["width"], call["height"]))
        raise ConfigError(f"--size {size}: the pipeline refuses it: {e}") from e


def _listen(host: str, port: int) -> socket.socket:
    """A socket before minutes of loading, so that a port in use is known at once.

    It refuses connections until the server listens: who can connect is served.
    """
    at = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        at.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        at.bind((host, port))
        return at
    except (OSError, OverflowError) as e:
        at.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {e}; choose another port.") from e


def _device(name: str | None) -> torch.device | None:
    try:
        return None if name is None else torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as e:  # the second where torch was built without CUDA
        why = str(e).partition("\n")[0]
        raise ConfigError(
            f"--device {name} cannot be used here: {why}; `hybridiff doctor` shows what can."
        ) from e


def served_of(serving: Serving, pipe: Any) -> Served:
    """What a pipeline serves.

    Raises:
        ConfigError: a size is none, or the pipeline does not say its own.
    """
    sizes = [_parsed(size) for size in serving.sizes]
    given = serving.of.call()
    given.pop("num_images_per_prompt", None)
    own = given.pop("width", None), given.pop("height", None)
    if not sizes:
        sizes = [own if all(own) else _own_size(pipe)]
    return Served(serving.of.name, sizes, parameters(pipe), given)


def _parsed(size: str) -> tuple[int, int]:
    width, _, height = size.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ConfigError(f"--size {size} is no size; write it as 1024x1024.")
    return int(width), int(height)


def _own_size(pipe: Any) -> tuple[int, int]:
    sample, scale = (getattr(pipe, n, None) for n in ("default_sample_size", "vae_scale_factor"))
    if not isinstance(sample, int) or not isinstance(scale, int):
        raise ConfigError(
            f"{type(pipe).__name__} does not say how large its pictures are; pass --size WxH."
        )
    return sample * scale, sample * scale


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Within this, SIGTERM and SIGINT only end the server: it raises them once more when it ends.

    By default the second one would end the process before the worker is told to.
    """
    chosen = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(one, lambda *_: None) for one in chosen]
    try:
        yield
    finally:
        for one, handler in zip(chosen, before, strict=True):
            signal.signal(one, handler)
