"""How torch computes, beyond the program: process-wide switches that all ranks must share."""

from __future__ import annotations

from typing import Any

import torch

# (module path below torch.backends, switch); those that this torch lacks are left out.
_SWITCHES = (
    ("cuda.matmul", "fp32_precision"),
    ("cuda.matmul", "allow_fp16_reduced_precision_reduction"),
    ("cuda.matmul", "allow_bf16_reduced_precision_reduction"),
    ("cudnn.conv", "fp32_precision"),
    ("cudnn", "benchmark"),
    ("cudnn", "deterministic"),
    ("mkldnn.matmul", "fp32_precision"),
    ("mkldnn.conv", "fp32_precision"),
)

#: The value of every switch, by its path; "" is that of deterministic algorithms.
Numerics = dict[str, Any]


def current() -> Numerics:
    """The switches as they are in this process."""
    values: Numerics = {"": torch.are_deterministic_algorithms_enabled()}
    for path, switch in _SWITCHES:
        owner = _owner(path)
        if hasattr(owner, switch):
            values[f"{path}.{switch}"] = getattr(owner, switch)
    return values


def apply(numerics: Numerics) -> None:
    """Set the switches as another process has them."""
    torch.use_deterministic_algorithms(numerics[""])
    for path, switch in _SWITCHES:
        name = f"{path}.{switch}"
        if name in numerics and current()[name] != numerics[name]:
            setattr(_owner(path), switch, numerics[name])


def _owner(path: str) -> Any:
    owner: Any = torch.backends
    for name in path.split("."):
        owner = getattr(owner, name, None)
    return owner
