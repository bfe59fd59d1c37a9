"""How torch computes, beyond the program: process-wide switches that all ranks must share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch.backends import cuda

#: The value of every switch, by its name.
Numerics = dict[str, Any]

_Switch = tuple[Callable[[], Any], Callable[[Any], None]]


def _attribute(path: str) -> _Switch:
    """A switch below torch.backends."""
    *owners, name = path.split(".")

    def owner() -> Any:
        found: Any = torch.backends
        for part in owners:
            found = getattr(found, part)
        return found

    return lambda: getattr(owner(), name), lambda value: setattr(owner(), name, value)


# In the order in which they are set. torch's older names for TF32 come first: setting them sets the
# newer ones, but a process where only the newer are set may not be asked for the older any more,
# and compilers ask.
_SWITCHES: dict[str, _Switch] = {
    "deterministic": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "matmul_precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    **{
        path: _attribute(path)
        for path in (
            "cudnn.allow_tf32",
            "cuda.matmul.fp32_precision",
            "cuda.matmul.allow_fp16_reduced_precision_reduction",
            "cuda.matmul.allow_bf16_reduced_precision_reduction",
            "cudnn.conv.fp32_precision",
            "cudnn.benchmark",
            "cudnn.deterministic",
            "mkldnn.matmul.fp32_precision",
            "mkldnn.conv.fp32_precision",
        )
    },
    # Of attention; they rule on the CPU too.
    "flash_sdp": (cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
    "mem_efficient_sdp": (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
    "math_sdp": (cuda.math_sdp_enabled, cuda.enable_math_sdp),
    "cudnn_sdp": (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
}


def current() -> Numerics:
    """The switches as they are in this process; those that torch lacks or does not tell are not."""
    values: Numerics = {}
    for name, (read, _) in _SWITCHES.items():
        with suppress(AttributeError, RuntimeError):
            values[name] = read()
    return values


def apply(numerics: Numerics) -> None:
    """Set the switches as another process has them."""
    for name, (_, write) in _SWITCHES.items():
        if name in numerics and current().get(name) != numerics[name]:
            write(numerics[name])
