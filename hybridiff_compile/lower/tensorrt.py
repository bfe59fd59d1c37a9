"""Compile a stage with torch-tensorrt: a static engine of the branch batch, no links inside."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch.export import ExportedProgram

from hybridiff_compile.errors import BackendError
from hybridiff_compile.lower.flat import Flat, Run


def check(device: torch.device) -> None:
    """Refuse what cannot work, before anything is captured.

    Raises:
        BackendError: the package, or an NVIDIA card, is missing.
    """
    if device.type != "cuda":
        raise BackendError(
            f"backend='tensorrt' needs an NVIDIA GPU, the pipeline is on {device}; move it there "
            "with pipe.to('cuda'), or use backend='inductor'."
        )
    if importlib.util.find_spec("torch_tensorrt") is None:
        raise BackendError(
            "backend='tensorrt' needs the package torch-tensorrt; install it with "
            "`pip install hybridiff-compile[tensorrt]`, or use backend='inductor'."
        )


def settings(device: torch.device) -> dict[str, Any]:
    """What torch-tensorrt (2.11 or later) is asked for, where that is not its default.

    Precision is not among it: an engine takes every tensor's dtype from the graph, and
    `enabled_precisions` is refused beside that for a half precision.
    """
    return {
        "device": device,
        "disable_tf32": torch.backends.cuda.matmul.fp32_precision != "tf32",  # as eager computes
        "min_block_size": 1,
        "truncate_double": True,
        # Its default takes every attention mask for a language model's and drops what it says.
        "attn_bias_is_causal": False,
    }


def program_of(flat: Flat, device: torch.device) -> tuple[ExportedProgram, list[torch.Tensor]]:
    """Export a stage for an engine, its weights inside.

    Returns:
        the program, and an input of the one shape, strides and dtype for each of its placeholders.
    """
    inputs = flat.examples(device)[len(flat.values) :]
    with torch.no_grad():
        return torch.export.export(flat.attached(), tuple(inputs), strict=False), inputs


def compile_flat(flat: Flat, device: torch.device) -> Run:
    """Build the engine of one stage; it keeps a copy of the stage's weights.

    Raises:
        BackendError: as `check`.
    """
    check(device)
    import torch_tensorrt  # pyright: ignore[reportMissingImports]

    program, inputs = program_of(flat, device)
    engine = torch_tensorrt.dynamo.compile(program, arg_inputs=inputs, **settings(device))
    count = len(flat.values)

    def run(*tensors: torch.Tensor) -> Sequence[torch.Tensor]:
        returned = engine(*tensors[count:])
        # Versions differ in whether one result comes in a tuple.
        return (returned,) if isinstance(returned, torch.Tensor) else returned

    return run
