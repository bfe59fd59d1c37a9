"""Whether a denoiser is still the one that was captured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

_PLAIN = (bool, int, float, str, type(None))


def fingerprint(denoiser: nn.Module) -> int:
    """Hash everything that a captured program has fixed: modules, settings, parameters.

    Covers a module added, replaced or set otherwise (a LoRA loaded or its scale changed, another
    attention processor), a parameter replaced or written in place, `train()` and `to()`.
    It does not see `parameter.data` written in place, which torch does not count; on the CPU such
    a write reaches the workers by itself, since the weights are shared.
    """
    return hash(tuple(_facts(denoiser)))


def _facts(denoiser: nn.Module) -> Iterator[Any]:
    for name, module in denoiser.named_modules():
        yield name, type(module), tuple(_settings(vars(module)))
    for name, tensor in (*denoiser.named_parameters(), *denoiser.named_buffers()):
        yield name, *_identity(tensor), tensor.dtype, str(tensor.device)


def _identity(tensor: torch.Tensor) -> tuple[int, int | None]:
    return tensor.data_ptr(), None if tensor.is_inference() else tensor._version


def _settings(values: Mapping[str, Any]) -> Iterator[Any]:
    for key, value in values.items():
        if isinstance(value, _PLAIN):
            yield key, value
        elif isinstance(value, Mapping) and not key.startswith("_"):
            yield key, tuple((k, v) for k, v in value.items() if isinstance(v, _PLAIN))
        elif isinstance(value, list | tuple):
            yield key, tuple(v for v in value if isinstance(v, _PLAIN))
        elif key in ("_forward_hooks", "_forward_pre_hooks"):
            yield key, tuple(value)
        elif isinstance(value, torch.Tensor):
            yield key, *_identity(value)
        elif key in ("processor", "forward"):
            yield key, id(value), type(value)
