"""A denoiser's weights in files that workers map, kept as the weights are now."""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.weak import WeakIdKeyDictionary

from hybridiff_compile.layout import plain_parts, writes
from hybridiff_compile.runtime.private import keep_private
from hybridiff_compile.runtime.weights import (
    Manifest,
    Weight,
    overlapping,
    publish,
    weights_file,
    weights_of,
)

#: The number of the file that has a weight, counted up, and whether the weight takes a gradient.
Stamp = tuple[int, bool]

_owners = itertools.count()


@dataclass
class _File:
    """One file, while it can be mapped, and what it holds."""

    path: Path
    files: ExitStack
    manifest: Manifest


class Published:
    """A module's weights, each in a file since it last was another one.

    A weight has one name for good, whatever module holds it: an adapter moves a layer's weight to
    another path.

    Attributes:
        owner: tells a worker whose weights they are; unique in this process.
    """

    def __init__(self, module: nn.Module) -> None:
        self.owner = next(_owners)
        self._module = module
        self._names: Any = WeakIdKeyDictionary()  # by the tensor object
        self._states: dict[str, list[tuple[Any, ...]]] = {}
        self._stamps: dict[str, Stamp] = {}
        self._files: dict[int, _File] = {}
        self._count = itertools.count()
        _all.add(self)

    @property
    def names(self) -> dict[int, str]:
        """By the `id` of each tensor object that is still there."""
        return {id(tensor): name for tensor, name in self._names.items()}

    def refresh(self, have: Mapping[str, Stamp]) -> bool:
        """Write what is not in a file as it is now, or cannot be mapped any more.

        Args:
            have: what a worker has, by name.

        Returns:
            Whether anything was written: the module's tensors lie elsewhere then.

        Raises:
            SpaceError: the files' folder has no room.
        """
        weights = self._named()
        stale = {name for name, tensor in weights.items() if self._is_stale(name, tensor)}
        lacking = {name for name in weights if self._lacks(name, have)}
        stale |= {name for name in lacking - stale if self._stamps[name][0] not in self._files}
        for name in weights.keys() - stale:
            self._note_gradient(name, weights[name])
        if not stale:
            return False
        plain = {n: t for n, t in weights.items() if not is_traceable_wrapper_subclass(t)}
        for group in overlapping(plain):  # they stay in one memory
            if not stale.isdisjoint(group):
                stale.update(group)
        self._write({name: tensor for name, tensor in weights.items() if name in stale})
        return True

    def offer(self, have: dict[str, Stamp]) -> Iterator[tuple[Path, Manifest, tuple[str, ...]]]:
        """What of the files a worker lacks; `have` is brought up to date as it is taken.

        Returns:
            For each file its path, where in it the weights lie, and the names that the worker has
            of tensors that are no more.
        """
        for serial, file in list(self._files.items()):
            names = {n for n, at in self._stamps.items() if at[0] == serial}
            names = {n for n in names if self._lacks(n, have)}
            if names:
                gone = tuple(have.keys() - set(self._names.values()))
                yield file.path, {n: w for n, w in file.manifest.items() if _is_of(n, names)}, gone
                have.update({name: self._stamps[name] for name in names})
                for name in gone:
                    have.pop(name)

    def mapped(self) -> None:
        """A worker has mapped them: keep the files only where the module itself lies in them."""
        if any(p.device.type != "cpu" for p in self._module.parameters()):
            self.close()

    def close(self) -> None:
        """The files are gone; the mappings stay, this process's own as memory of its own."""
        for serial in list(self._files):
            self._files.pop(serial).files.close()

    def forget(self) -> None:
        """In a forked child: what it writes to its weights is not for its parent to see."""
        self.close()
        self._stamps.clear()
        self._states.clear()

    def _named(self) -> dict[str, torch.Tensor]:
        """The module's weights by their names; new ones get one."""
        used, found = set(self._names.values()), {}
        for name, tensor in weights_of(self._module).items():
            if tensor not in self._names:
                while name in used:
                    name += "'"
                used.add(name)
                self._names[tensor] = name
            found[self._names[tensor]] = tensor
        return found

    def _lacks(self, name: str, have: Mapping[str, Stamp]) -> bool:
        return have.get(name) != self._stamps.get(name)

    def _is_stale(self, name: str, tensor: torch.Tensor) -> bool:
        """Whether a weight is another one than in its file; one that lies in it never is."""
        before, now = self._states.get(name), _state(tensor)
        if before is None or name not in self._stamps:
            return True
        is_here = all(part.device.type == "cpu" for part in plain_parts(tensor))
        if is_here and self._stamps[name][0] in self._files:
            return [s[:-1] for s in before] != [s[:-1] for s in now]
        return before != now

    def _note_gradient(self, name: str, tensor: torch.Tensor) -> None:
        """Whether a weight takes a gradient is told without its data."""
        serial, takes = self._stamps[name]
        if takes != tensor.requires_grad and serial in self._files:
            manifest = self._files[serial].manifest
            found = manifest[name]
            if isinstance(found, Weight):
                manifest[name] = replace(found, requires_grad=tensor.requires_grad)
            self._stamps[name] = serial, tensor.requires_grad

    def _write(self, weights: Mapping[str, torch.Tensor]) -> None:
        with ExitStack() as files:
            handle, path = files.enter_context(weights_file())
            manifest, mapping = publish(weights, path)
            files.callback(keep_private, mapping, handle)
            serial = next(self._count)
            self._files[serial] = _File(path, files.pop_all(), manifest)
        for name, tensor in weights.items():
            self._states[name] = _state(tensor)
            self._stamps[name] = serial, tensor.requires_grad
        current = set(self._names.values())
        self._stamps = {n: at for n, at in self._stamps.items() if n in current}
        for old in self._files.keys() - {serial for serial, _ in self._stamps.values()}:
            self._files.pop(old).files.close()


_all: weakref.WeakSet[Published] = weakref.WeakSet()


def _forget_all() -> None:
    for published in list(_all):
        published.forget()


os.register_at_fork(after_in_child=_forget_all)


def _is_of(name: str, names: set[str]) -> bool:
    """Whether a name is one of these, or of a part of one, as in `Wrapped`."""
    return name in names or any(name.startswith(f"{whole}.") for whole in names)


def _state(tensor: torch.Tensor) -> list[tuple[Any, ...]]:
    """Where a tensor's parts lie and how, and torch's count of writes."""
    return [
        (p.data_ptr(), p.shape, p.stride(), p.dtype, p.device, writes(p))
        for p in plain_parts(tensor)
    ]
