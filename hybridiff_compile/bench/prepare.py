"""`hybridiff compile | export | load-check`: do before the first picture what takes long."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

import hybridiff_compile
from hybridiff_compile import package
from hybridiff_compile.bench import command, models, ranks
from hybridiff_compile.errors import ConfigError, HybridiffError
from hybridiff_compile.package.manifest import Call, Manifest, TensorLeaf

COMPILERS = ("inductor", "tensorrt")


@dataclass(frozen=True)
class Wanted:
    """Whose programs to prepare, and for which calls.

    Attributes:
        model: one of `models.NAMES`; None for a pipeline of the user's.
        pipe: folder of a user's pipeline; None for an embedded model.
        mode: as in `optimize`.
        height, width: of the pictures, pixels; None is the pipeline's own.
        images: pictures for each prompt.
        steps: denoising steps of the calls; None is the pipeline's own.
    """

    model: str | None
    pipe: Path | None
    mode: Any = "hybrid"
    height: int | None = None
    width: int | None = None
    images: int = 1
    steps: int | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError unless there is one pipeline, and sizes that a picture can have."""
        if (self.model is None) == (self.pipe is None):
            raise ConfigError(
                f"model={self.model}, pipe={self.pipe}: give one of --model NAME and --pipe FOLDER."
            )
        if self.model is not None:
            models.check_names([self.model])
        for name in ("height", "width", "images", "steps"):
            value = getattr(self, name)
            if value is not None:
                command.check_least(name, value, 1)

    @property
    def name(self) -> str:
        """What to call the pipeline."""
        return self.model or str(self.pipe)

    def load(self) -> Any:
        """Load the pipeline."""
        if self.pipe is not None:
            return models.load_folder(self.pipe)
        assert self.model is not None
        return models.load(self.model)

    def call(self) -> dict[str, Any]:
        """Keywords of the pipeline's call that were given, or that the model was trained for."""
        given = {
            "height": self.height,
            "width": self.width,
            "num_images_per_prompt": self.images,
            "num_inference_steps": self.steps,
        }
        trained = {} if self.model is None else models.call_settings(self.model)
        return {**trained, **{name: value for name, value in given.items() if value is not None}}


def compile_ahead(wanted: Wanted, backend: Any, scope: Any, console: Console) -> None:
    """Compile for both ranks, so that a later process finds it in Inductor's cache.

    Raises:
        ConfigError: the backend compiles nothing ahead.
    """
    if backend not in COMPILERS:
        raise ConfigError(
            f"backend={backend!r} compiles nothing ahead of a run; choose one of "
            f"{', '.join(COMPILERS)}."
        )
    with hybridiff_compile.optimize(
        wanted.load(), mode=wanted.mode, backend=backend, scope=scope
    ) as model:
        seconds = _compiled(model, wanted)
        graphs = ranks.compilations(model)
    console.print(
        f"{wanted.name}, {wanted.mode}, {backend}, {scope}: all ranks ready in {seconds:.1f} s, "
        "capturing included",
        soft_wrap=True,
        highlight=False,
    )
    for rank, count in enumerate(graphs):
        console.print(f"rank {rank}: {count} compiled graphs", highlight=False)
    if backend == "inductor":
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        said = f"the cache is {cache_dir()}; TORCHINDUCTOR_CACHE_DIR chooses another"
        console.print(said, style="dim", soft_wrap=True, highlight=False)


def export(wanted: Wanted, out: Path, form: Any, console: Console) -> None:
    """Export a package that another process loads without compiling.

    Raises:
        ConfigError: the folder exists.
    """
    if out.exists():  # known before the minutes that compiling takes
        raise ConfigError(f"{out} exists already; name a new folder for the package.")
    begin = time.perf_counter()
    with hybridiff_compile.optimize(wanted.load(), mode=wanted.mode) as model:
        _compiled(model, wanted)
        hybridiff_compile.export(model, out, format=form)
    seconds = time.perf_counter() - begin
    console.print(
        f"{wanted.name}, {wanted.mode}: wrote {out} ({form}) in {seconds:.1f} s",
        soft_wrap=True,
        highlight=False,
    )


def _compiled(model: hybridiff_compile.Model, wanted: Wanted) -> float:
    """Seconds until all ranks were ready for the wanted call."""
    begin = time.perf_counter()
    try:
        model.compile(**wanted.call())
    except HybridiffError:
        raise
    except ValueError as e:  # of the pipeline, which checks what it is called with
        raise ConfigError(f"the pipeline refuses this call: {e}") from e
    return time.perf_counter() - begin


def load_check(folder: Path, console: Console) -> None:
    """Check every file of a package, and say what is in it.

    Raises:
        PackageError: it is not whole; the message names the file.
    """
    for line in summary(folder, package.check(folder)):
        console.print(line, soft_wrap=True, highlight=False)


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
    for leaf in call.leaves:
        if isinstance(leaf, TensorLeaf):
            yield f"{'x'.join(map(str, leaf.shape)) or 'scalar'} {leaf.dtype}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
