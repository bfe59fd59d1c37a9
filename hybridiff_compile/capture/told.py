"""What tells later that a value went on or was written in place: an array's bytes, say."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch

from hybridiff_compile.layout import writes


def count_of(value: Any) -> str:
    """What is another text once a value was changed and is still the same object; "" if nothing is.

    Of an iterator (of a list, a count, a range) how far it came, of an array its bytes, of a
    context variable what it holds. Of a tensor that was made under `torch.inference_mode()` its
    bytes, because torch counts no writes to it. Not of parameters, which are many and large. Not
    on another device than the CPU, because that would have to be waited for.
    """
    if isinstance(value, torch.Tensor):
        return _of_uncounted(value)
    if hasattr(type(value), "tobytes"):
        held = getattr(value, "shape", None), getattr(value, "dtype", None)
        return f"{held} {hash(value.tobytes())}"
    if isinstance(value, bytearray):
        return f"{hash(bytes(value))}"
    if isinstance(value, ContextVar):
        return _of_variable(value)
    if type(value).__module__ in ("builtins", "itertools") and isinstance(value, Iterator):
        return f"{value!r} {operator.length_hint(value, -1)}"
    return ""


def _of_uncounted(tensor: torch.Tensor) -> str:
    is_plain = type(tensor) is torch.Tensor and tensor.layout is torch.strided
    if not is_plain or tensor.device.type != "cpu" or writes(tensor) is not None:
        return ""
    flat = tensor.detach().resolve_conj().resolve_neg().flatten().view(torch.uint8)
    return f"{hash(flat.numpy().tobytes())}"


def _of_variable(variable: ContextVar[Any]) -> str:
    try:
        return repr(variable.get())
    except LookupError:
        return "unset"
