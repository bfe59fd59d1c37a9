"""Whether a denoiser is still the one that was captured."""

from __future__ import annotations

import operator
from collections.abc import Generator, Iterator
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from hybridiff_compile.adapters import active_numbers, computes_with, containers, given
from hybridiff_compile.capture.pipelines import Pipelines
from hybridiff_compile.capture.place import PLAIN, Names, Place
from hybridiff_compile.capture.reach import MOST, has_code, places
from hybridiff_compile.capture.told import count_of
from hybridiff_compile.layout import plain_parts, writes

#: A tensor with its address, its version, and whether it takes a gradient.
Kept = tuple[torch.Tensor, int, int | None, bool]

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

# On the denoiser: our own forward; what is noted there of the adapters that there are, and of how
# they were fused.
_UNREAD_OF_ALL = {"forward", "peft_config", "_hf_peft_config_loaded"}
_UNREAD_OF_FUSED = {"lora_scale", "_safe_fusing"}

_TORCHS = Names(functional, tuple(n for n, f in vars(functional).items() if callable(f)))


def fingerprint(denoiser: nn.Module) -> int:
    """Hash everything that a captured program has fixed: modules, settings, parameters.

    Covers a module added, replaced or set otherwise (a LoRA loaded or its scale changed), another
    attention processor or one that is set otherwise, a parameter replaced or written in place,
    `train()` and `to()`; and what a user's hooks and processors read elsewhere, see `reach`.
    Settings count by what they hold: those that were set back are as before.
    It does not see `parameter.data` written in place, which torch does not count; on the CPU such
    a write reaches the workers by itself, since the weights are shared.
    """
    return Watch(denoiser).value


class Watch:
    """What a denoiser was at one moment; asks quickly whether it still is that.

    Attributes:
        value: the fingerprint.
        form: the same but for scales of adapters, and for all tensors: where they are, and what
            was written to them.
        structure: the same but for the data of parameters and buffers, the objects being the same.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self._denoiser = denoiser
        self._look = look = _Look(denoiser)
        self.value, self.form, self.structure = look.value, look.form, look.structure

    def holds(self) -> bool:
        """Whether the denoiser is as it was: milliseconds if nothing at all was exchanged."""
        if self._look.is_untouched():
            return True
        now = _Look(self._denoiser)
        if now.value != self.value:
            return False
        self._look = now
        return True

    def was_written(self) -> bool:
        """Whether a tensor that is still where it was has been written since, in place."""
        known = self._look.tensors
        return any(t.data_ptr() == at and writes(t) != count for t, at, count, _ in known)


class _Look:
    """One walk through all that a denoiser reaches, and the very objects that it met there."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        self.objects: list[Any] = []
        self.containers: list[Any] = []
        self.dicts: list[dict[str, Any]] = []  # those that hold something, by strings
        self.keys: list[str] = []
        self.views: list[Any] = []  # live ones, of what the containers hold
        self.inside: list[Any] = []
        self.named: list[tuple[Names, tuple[Any, ...]]] = []
        self.counts: list[tuple[Any, str]] = []
        self.tensors: list[Kept] = []
        self.numbers: list[Any] = []  # scales of adapters
        fuses = hasattr(denoiser, "fuse_lora")
        self._unread = _UNREAD_OF_ALL | (_UNREAD_OF_FUSED if fuses else set())
        self.form = hash(tuple(self._facts()))
        # Kernels go by whether a gradient is taken, too.
        weights = tuple(facts[1:] for facts in self.tensors)
        self.value = hash((self.form, weights, *self.numbers))
        self.structure = hash((self.form, *self._fixed()))
        self.types, self.lengths = [*map(type, self.objects)], [*map(len, self.containers)]

    def _fixed(self) -> Iterator[tuple[int, ...]]:
        """Of a weight which object it is, of another tensor its data, too."""
        weights = *self.denoiser.parameters(), *self.denoiser.buffers()
        known = {id(t) for t in (*weights, *given(self.denoiser).values())}
        for tensor, address, version, takes in self.tensors:
            is_weight = id(tensor) in known and version is not None
            yield (id(tensor),) if is_weight else (address, version or 0, takes)

    def is_untouched(self) -> bool:
        """Whether each container holds the very same objects, by the same keys.

        Asked at each step: most are empty, and keys, which are strings, are compared at once.
        """
        return (
            [*map(type, self.objects)] == self.types
            and [*map(len, self.containers)] == self.lengths
            and [*chain.from_iterable(self.dicts)] == self.keys
            and all(map(operator.is_, chain.from_iterable(self.views), self.inside))
            and all(map(_is_kept, self.tensors))
            and all(all(map(operator.is_, n.values(), held)) for n, held in self.named)
            and all(count_of(iterator) == count for iterator, count in self.counts)
        )

    def _facts(self) -> Iterator[Any]:
        """Flat facts of the denoiser and of all that it reaches but weights, in a fixed order."""
        seen: dict[int, int] = {}
        # People put another attention in the place of torch's.
        todo: list[Any] = [self.denoiser, *(yield from self._hold(_TORCHS, functional))]
        pipelines = Pipelines()
        while todo:
            value = todo.pop()
            if isinstance(value, nn.Module) and (found := computes_with(value)) is not None:
                self._watch_layer(value)
                todo += reversed(found)
            elif isinstance(value, PLAIN):
                yield value if value == value else "nan"
            elif id(value) in seen or len(seen) > MOST:
                yield type(value), seen.get(id(value))
            else:
                seen[id(value)] = len(seen)
                pipelines.meet(value)
                yield type(value)
                todo += reversed([*(yield from self._of(value))])
            if not todo:
                for place in pipelines.places():
                    todo += reversed([*(yield from self._hold(place, place.owner))])

    def _of(self, value: Any) -> Generator[Any, None, list[Any]]:
        """Facts of a value itself; returns what is in it."""
        if isinstance(value, torch.Tensor):
            yield from self._of_tensor(value)
            return []
        inside: list[Any] = []
        if isinstance(value, nn.Module) or has_code(type(value)):
            self.objects.append(value)
            inside.append(type(value))
        found = places(value)
        if not found or isinstance(value, type):
            yield self._counted(value) or id(value)
        for place in found:
            inside += yield from self._hold(place, value)
        return inside

    def _of_tensor(self, tensor: torch.Tensor) -> Iterator[Any]:
        for part in plain_parts(tensor):
            self.tensors.append((part, part.data_ptr(), writes(part), part.requires_grad))
            yield part.dtype, str(part.device), part.shape
            yield self._counted(part)

    def _counted(self, value: Any) -> str:
        if count := count_of(value):
            self.counts.append((value, count))
        return count

    def _hold(self, place: Place, owner: Any) -> Generator[Any, None, list[Any]]:
        """Note what a place holds; yields the names in it, returns the values by them.

        Only those that a forward may read.
        """
        keys, values = place.entries()
        if isinstance(place, Names):
            self.named.append((place, place.values()))
        elif not isinstance(place.owner, tuple | frozenset):
            self._watch(place.owner)
        unread: frozenset[str] = frozenset()
        if place.owner is not owner and isinstance(owner, nn.Module):
            unread = _UNREAD | (self._unread if owner is self.denoiser else set())
        pairs = [(k, v) for k, v in zip(keys, values, strict=True) if k not in unread]
        if isinstance(owner, nn.Module):
            pairs = [(k, v) for k, v in pairs if not _is_left_over(owner, k, v)]
        yield tuple(_name(k) for k, _ in pairs)
        return [v for _, v in pairs]

    def _watch_layer(self, layer: nn.Module) -> None:
        """One with adapters: what says which of them are active; see `adapters`."""
        self.objects.append(layer)
        self.numbers += active_numbers(layer)
        for container in containers(layer):
            self._watch(container)

    def _watch(self, container: Any) -> None:
        self.containers.append(container)
        if not container:
            return
        if not isinstance(container, dict):
            self.views.append(container)
            self.inside += container
            return
        if all(type(key) is str for key in container):
            self.dicts.append(container)
            self.keys += container
        else:
            self.views.append(container)
            self.inside += container
        self.views.append(container.values())
        self.inside += container.values()


def _is_left_over(module: nn.Module, key: Any, value: Any) -> bool:
    """Whether it means nothing: what hooks of diffusers leave on a module once they are removed."""
    if key == "_diffusers_hook":
        return getattr(value, "hooks", None) == {}
    if key != "forward":
        return False
    is_own = getattr(value, "__func__", None) is type(module).forward
    return is_own and value.__self__ is module


def _name(key: Any) -> Any:
    return key if isinstance(key, PLAIN) else type(key)


def _is_kept(kept: Kept) -> bool:
    tensor, address, version, takes = kept
    return (
        tensor.data_ptr() == address and writes(tensor) == version and tensor.requires_grad == takes
    )
