"""Compile a part with Inductor: the graph is there already, so nothing is traced a second time."""

from __future__ import annotations

import copyreg
import hashlib
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from hybridiff_compile.config import CompileMode
from hybridiff_compile.lower.flat import Flat, Run

# Links inside a compiled step: a sent buffer is read until its wait, and both ranks must meet their
# links in the program's order, which Inductor sees no reason for.
_LINKED = {
    "allow_buffer_reuse": False,
    "inplace_buffers": False,
    "reorder_for_peak_memory": False,
}


def compile_flat(
    flat: Flat, device: torch.device, mode: CompileMode | None, *, linked: bool = False
) -> Run:
    """Compile one graph for static shapes.

    Args:
        flat: the graph.
        device: where it will run.
        mode: as in `torch.compile`; None is its default.
        linked: whether sends and receives are inside.
    """
    # Imported here, because a worker of another backend must not pay for the compiler.
    from torch import _inductor as inductor

    options = {**(inductor.list_mode_options(mode) if mode else {}), **(_LINKED if linked else {})}
    tagged = torch.compiler.config.patch(cache_key_tag=_sources())  # pyright: ignore
    with torch.no_grad(), tagged:
        return inductor.standalone_compile(
            flat.module,
            list[Any](flat.examples(device)),
            dynamic_shapes="from_example_inputs",
            options={"config_patches": options},
        )


def get_ready(device: torch.device) -> Callable[[], None]:
    """Import the compiler and, on a CPU, begin to try instruction sets: seconds of waiting.

    Returns:
        What waits for that.
    """
    from torch._inductor import compile_fx, cpu_vec_isa

    assert compile_fx is not None  # imported for the next use
    if device.type != "cpu":
        return lambda: None
    # Only other processes and files are waited for there, so a capture may go on beside it.
    trying = threading.Thread(target=cpu_vec_isa.pick_vec_isa)
    trying.start()
    return trying.join


def has_cuda_graphs(mode: CompileMode) -> bool:
    """Whether a mode lets Inductor record what it compiles for a GPU as CUDA graphs."""
    from torch import _inductor as inductor

    return bool(inductor.list_mode_options(mode).get("triton.cudagraphs"))


def _memory_format(name: str) -> torch.memory_format:
    return getattr(torch, name.removeprefix("torch."))


# Left alone, a memory format is pickled by the name of whichever module first imported torch. That
# is part of Inductor's key, and the ranks would not find each other's code in the cache.
copyreg.pickle(torch.memory_format, lambda it: (_memory_format, (str(it),)))


@cache
def _sources() -> str:
    """Part of the key of Inductor's own caches: another version of this package compiles anew."""
    return sources_tag(Path(__file__).resolve().parents[1])


def sources_tag(package: Path) -> str:
    """Tell one state of what rewrites and lowers graphs from another.

    Args:
        package: a folder with the folders `passes` and `lower`.
    """
    digest = hashlib.sha256()
    folders = (package / "passes", package / "lower")
    types = (package / "ir.py", package / "layout.py", package / "ops.py")
    for file in (*types, *(f for folder in folders for f in sorted(folder.glob("*.py")))):
        digest.update(file.read_bytes())
    return f"hybridiff-{digest.hexdigest()[:16]}"
