"""Layers with adapters, as peft makes them: what they compute with, and the scales as tensors.

Such a layer multiplies what an adapter adds by a Python number, which users change between two
pictures. A graph would hold the number as it is when it is captured. So while a denoiser is
exported, a tensor stands in its place.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

#: Of each layer by adapter. On the CPU, as Python numbers are, and as exact: kernels on any device
#: then round a product as they do that of a Python number.
_tensors: weakref.WeakKeyDictionary[nn.Module, dict[str, torch.Tensor]] = (
    weakref.WeakKeyDictionary()
)


# Attributes of such a layer.
_SETTINGS = (
    *("_modules", "_parameters", "_forward_hooks", "_forward_pre_hooks"),
    *("scaling", "merged_adapters", "_active_adapter", "lora_variant"),
)


class _Scale:
    """Stands for a number in a layer's arithmetic; what it makes of others is a tensor's."""

    def __init__(self, value: torch.Tensor) -> None:
        self._value = value

    def __mul__(self, other: Any) -> Any:
        # It comes second, as a number does: kernels round otherwise where it comes first.
        made = other * self._value
        return made if isinstance(other, torch.Tensor) else _Scale(made)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> _Scale:
        return _Scale(self._value / other)


def numbers(module: nn.Module) -> dict[str, float] | None:
    """Where a layer has the scales of its adapters as numbers; None if it has none.

    Only where a layer multiplies by them and nothing else: other kinds and variants of adapters
    compute with them as they like.
    """
    found = _scaling(module)
    is_plain = found and not vars(module).get("lora_variant")
    return found if is_plain and all(type(n) is float for n in found.values()) else None


def given(module: nn.Module) -> dict[str, torch.Tensor]:
    """The scales within a module that are tensors already, by name, as peft makes them to swap."""
    return {
        f"{path}.scaling.{name}": value
        for path, layer in module.named_modules()
        for name, value in _scaling(layer).items()
        if isinstance(value, torch.Tensor)
    }


def computes_with(layer: nn.Module) -> list[Any] | None:
    """All that a layer's forward reads, as it is set now, but the scales; None for other layers.

    A layer whose adapters are merged, or off, is what is inside of it. An adapter that is not
    active is not read, nor are the notes of how adapters were made.
    """
    own, scales = vars(layer), _scaling(layer)
    if numbers(layer) is None and not any(map(torch.is_tensor, scales.values())):
        return None
    if own.get("_forward_hooks") or own.get("_forward_pre_hooks") or own.get("lora_variant"):
        return None
    state: Any = layer
    try:
        if state.merged or state.disable_adapters:
            # Off while it is merged, it takes the adapter out again as it is called.
            return None if state.merged and state.disable_adapters else [state.base_layer]
        parts = [state.lora_A, state.lora_B, state.lora_dropout]
        active = [name for name in state.active_adapters if name in state.lora_A]
        given = [v for n, v in scales.items() if n in active and torch.is_tensor(v)]
        more = own.get("cast_input_dtype_enabled")
    except AttributeError:  # another library's, which is like it so far
        return None
    return [
        type(layer),
        layer.training,
        more,
        state.base_layer,
        *(p[n] for n in active for p in parts),
        *given,
    ]


def active_numbers(layer: Any) -> list[float]:
    """The scales that a layer's forward reads now, of a layer as in `computes_with`."""
    scales = numbers(layer) or {}
    return [scales[name] for name in layer.active_adapters if name in scales]


def containers(layer: nn.Module) -> list[Any]:
    """Where it is written what `computes_with` goes by: none is exchanged or resized unseen."""
    own = vars(layer)
    named = [own.get(name) for name in _SETTINGS]
    inner = [vars(m)["_modules"] for n, m in own["_modules"].items() if n.startswith("lora_")]
    return [own, *(c for c in named if isinstance(c, dict | list)), *inner]


def _scaling(module: nn.Module) -> dict[str, Any]:
    """By adapter, as peft's layers have them; empty if it is no such layer."""
    found = vars(module).get("scaling")
    return found if isinstance(found, dict) and hasattr(module, "lora_A") else {}


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """The scales within a module as tensors, by name; each holds the number of now."""
    found = given(module)
    for path, layer in module.named_modules():
        for name, number in (numbers(layer) or {}).items():
            held = _tensors.setdefault(layer, {})
            if name not in held:
                held[name] = torch.tensor(number, dtype=torch.float64)
            elif held[name].item() != number:
                held[name].fill_(number)
            found[f"{path}.scaling.{name}"] = held[name]
    return found


@contextmanager
def as_tensors(module: nn.Module) -> Iterator[None]:
    """Within this, the layers of a module compute with tensors in the place of the numbers."""
    tensors(module)
    own = list[tuple[nn.Module, dict[str, Any], dict[str, Any]]]()
    try:
        for layer in module.modules():
            found: dict[str, Any] = numbers(layer) or {}
            if found:
                own.append((layer, found, dict(found)))
                found.update({name: _Scale(_tensors[layer][name]) for name in found})
        yield
    finally:
        for layer, found, before in own:
            found.update(before)
            vars(layer)["scaling"] = found  # torch.export may have left a copy
