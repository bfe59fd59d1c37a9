"""Whether a denoiser is still the one that was captured."""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from hybridiff_compile.capture.state import MOST, PLAIN
from hybridiff_compile.layout import plain_parts, writes

_CODE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, type)

#: A container with the keys and the objects that it held; a tensor with its address and version.
Held = tuple[Any, tuple[Any, ...], tuple[Any, ...]]
Kept = tuple[torch.Tensor, int, int | None]

# What a module notes for others than its forward: hooks of saving and loading, of gradients.
_UNREAD = frozenset(
    {
        "_non_persistent_buffers_set",
        "_is_full_backward_hook",
        "_forward_hooks_with_kwargs",
        "_forward_hooks_always_called",
        "_forward_pre_hooks_with_kwargs",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
        "_load_state_dict_pre_hooks",
        "_load_state_dict_post_hooks",
    }
)


def fingerprint(denoiser: nn.Module) -> int:
    """Hash everything that a captured program has fixed: modules, settings, parameters.

    Covers a module added, replaced or set otherwise (a LoRA loaded or its scale changed), another
    attention processor or one that is set otherwise, a parameter replaced or written in place,
    `train()` and `to()`. Settings count by what they hold: those that were set back are as before.
    It does not see `parameter.data` written in place, which torch does not count; on the CPU such
    a write reaches the workers by itself, since the weights are shared.
    """
    return Watch(denoiser).value


class Watch:
    """What a denoiser was at one moment; asks quickly whether it still is that.

    Attributes:
        value: the fingerprint.
        form: the same but for the weights: where they are, and what was written to them.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self._denoiser = denoiser
        self.value, self.form, self._held, self._tensors = _look(denoiser)

    def holds(self) -> bool:
        """Whether the denoiser is as it was: milliseconds if nothing at all was exchanged."""
        if all(map(_is_held, self._held)) and all(map(_is_kept, self._tensors)):
            return True
        now = _look(self._denoiser)
        if now[0] != self.value:
            return False
        _, _, self._held, self._tensors = now
        return True


def _look(denoiser: nn.Module) -> tuple[int, int, list[Held], list[Kept]]:
    look = _Look(denoiser)
    form = hash(tuple(look.facts()))
    weights = tuple((address, version) for _, address, version in look.tensors)
    return hash((form, weights)), form, look.held, look.tensors


class _Look:
    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        self.held: list[Held] = []
        self.tensors: list[Kept] = []

    def facts(self) -> Iterator[Any]:
        """Flat facts of the denoiser and of all that it holds but weights, in a fixed order."""
        seen: dict[int, int] = {}
        todo: list[Any] = [self.denoiser]
        while todo:
            value = todo.pop()
            if isinstance(value, PLAIN):
                yield value if value == value else "nan"
            elif isinstance(value, _CODE):
                yield id(getattr(value, "__func__", value))
            elif id(value) in seen or len(seen) > MOST:
                yield type(value), seen.get(id(value))
            else:
                seen[id(value)] = len(seen)
                yield type(value)
                if isinstance(value, torch.Tensor):
                    yield from self._of_tensor(value)
                    continue
                containers = _containers(value)
                if not containers:
                    yield id(value)
                for container in containers:
                    names, inside = self._hold(container, value)
                    yield names
                    todo += reversed(inside)

    def _of_tensor(self, tensor: torch.Tensor) -> Iterator[Any]:
        for part in plain_parts(tensor):
            self.tensors.append((part, part.data_ptr(), writes(part)))
            yield part.dtype, str(part.device), part.shape

    def _hold(self, container: Any, owner: Any) -> tuple[tuple[Any, ...], list[Any]]:
        """Note what a container holds; the names and values in it that a forward may read."""
        keys, values = _entries(container)
        self.held.append((container, keys, values))
        if container is not owner and isinstance(owner, nn.Module):
            unread = _UNREAD | {"forward"} if owner is self.denoiser else _UNREAD
            pairs = [(k, v) for k, v in zip(keys, values, strict=True) if k not in unread]
            return tuple(k for k, _ in pairs), [v for _, v in pairs]
        return tuple(map(_name, keys)), list(values)


def _containers(value: Any) -> list[Any]:
    """The dicts, lists and the like that hold what a value is made of."""
    if isinstance(value, functools.partial):
        return [[value.func, value.args, value.keywords]]
    found = [value] if isinstance(value, dict | list | tuple | set | frozenset) else []
    attributes = getattr(value, "__dict__", None)
    if not isinstance(attributes, dict) or (found and not attributes):
        return found
    return [*found, attributes]


def _entries(container: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    if isinstance(container, dict):
        return tuple(container), tuple(container.values())
    values = sorted(container, key=repr) if isinstance(container, set | frozenset) else container
    return tuple(range(len(values))), tuple(values)


def _name(key: Any) -> Any:
    return key if isinstance(key, PLAIN) else type(key)


def _is_held(held: Held) -> bool:
    """Whether a container holds the very same objects, by the same keys."""
    container, keys, values = held
    if len(container) != len(values):
        return False
    if isinstance(container, dict):
        return all(map(operator.is_, container.values(), values)) and tuple(container) == keys
    inside = container if isinstance(container, list | tuple) else _entries(container)[1]
    return all(map(operator.is_, inside, values))


def _is_kept(kept: Kept) -> bool:
    tensor, address, version = kept
    return tensor.data_ptr() == address and writes(tensor) == version
