"""What a denoiser's forward leaves behind in it: found by trying, not by the names of caches.

A captured program computes one step's forward for ever. A denoiser that decides by what it kept of
an earlier call (a cache of features, a counter of steps) would be frozen at that step.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hybridiff_compile.capture.pipelines import Pipelines
from hybridiff_compile.capture.place import PLAIN, Names, Place
from hybridiff_compile.capture.reach import MOST, has_code, places
from hybridiff_compile.capture.told import count_of
from hybridiff_compile.layout import writes

_ORDINARY = (torch.Tensor, nn.Parameter)  # what FakeTensors and quantised weights are not


# Values within values that are compared.
_DEPTH = 6

#: A tensor or an iterator by its path, and how far it was.
Written = tuple[str, Any, int | str | None]


@dataclass(frozen=True)
class Held:
    """One place and what it held: an object's attributes, a dict, a closure, some globals."""

    path: str
    place: Place
    content: Any


@dataclass(frozen=True)
class State:
    """What a denoiser held at one moment beside its parameters' values; it can be put back.

    Tensors are compared by what they hold when they are others, and by torch's count of writes
    when they are the same: one that was written in place cannot be put back. One that was made to
    point elsewhere, as offloading does with weights, can be.
    """

    denoiser: nn.Module
    held: tuple[Held, ...]
    versions: tuple[Written, ...]
    data: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    @classmethod
    def of(cls, denoiser: nn.Module) -> State:
        """Look at everything that the denoiser reaches: modules, hooks, processors, globals."""
        found = list(_reached(denoiser))
        held = tuple(h for h in found if isinstance(h, Held))
        versions = tuple(v for v in found if not isinstance(v, Held))
        with torch.no_grad():
            data = [(t, t.detach()) for _, t, _ in versions if type(t) in _ORDINARY]
        return cls(denoiser, held, versions, tuple(data))

    def changes(self) -> list[str]:
        """Paths of what is no longer as it was."""
        found = [h for h in self.held if not _same(h.content, h.place.copy())]
        return [*map(_changed_path, found), *self.written()]

    def written(self) -> list[str]:
        """Paths of what was changed for good: tensors written in place, iterators that went on."""
        return [path for path, value, before in self.versions if _version(value) != before]

    def restore(self) -> None:
        """Put back what was exchanged; a tensor that was written in place stays so."""
        for held in self.held:
            if not _same(held.content, held.place.copy(), by_value=False):
                held.place.put(held.content)
        for tensor, data in self.data:
            if tensor.device != data.device or tensor.data_ptr() != data.data_ptr():
                tensor.data = data


@contextmanager
def kept(denoiser: nn.Module) -> Iterator[None]:
    """Within this, whatever a trial run leaves in the denoiser is taken out again at the end."""
    state = State.of(denoiser)
    try:
        yield
    finally:
        state.restore()


def left_behind(
    denoiser: nn.Module, first: Callable[[], Any], again: Callable[[], Any]
) -> tuple[Any, list[str]]:
    """Run a denoiser and find what its forward leaves in it that a later call could read.

    A table that the first call makes and later ones only read is no such thing: if the first run
    changes anything, a second one of other values must change nothing more. What the second run
    changed is put back.

    Args:
        denoiser: with its own forward in place.
        first: runs the call as the pipeline made it.
        again: runs it with another noisy picture of the same shape.

    Returns:
        What `first` returned, and the paths of what changes from call to call; none is well.
    """
    before = State.of(denoiser)
    answer = first()
    if written := before.written():
        return answer, written
    if not before.changes():
        return answer, []
    between = State.of(denoiser)
    try:
        again()
        return answer, between.changes()
    finally:
        between.restore()


def _reached(denoiser: nn.Module) -> Iterator[Held | Written]:
    seen: set[int] = set()
    todo: list[tuple[str, Any]] = [(type(denoiser).__name__, denoiser)]
    pipelines = Pipelines()
    while todo and len(seen) < MOST:
        path, value = todo.pop()
        if isinstance(value, Place):
            if not isinstance(value.owner, tuple):
                yield Held(path, value, value.copy())
            keys, values = value.entries()
            is_named = isinstance(value, Names) or isinstance(value.owner, dict)
            todo += [(_path(path, k, is_named), v) for k, v in zip(keys, values, strict=True)]
        elif not isinstance(value, PLAIN) and id(value) not in seen:
            seen.add(id(value))
            pipelines.meet(value)
            if isinstance(value, torch.Tensor) or count_of(value):
                yield path, value, _version(value)
                continue
            todo += [(path, place) for place in reversed(places(value))]
            if has_code(type(value)):
                todo.append((type(value).__name__, type(value)))
        todo = todo or [(type(p.owner).__name__, p) for p in pipelines.places()]


def _changed_path(held: Held) -> str:
    if not isinstance(held.place, Names):
        return held.path
    now = held.place.copy()
    names = [n for n, v in held.content.items() if not _same(v, now.get(n))]
    return _path(held.path, names[0], True) if names else held.path


def _version(value: Any) -> int | str | None:
    return count_of(value) or (writes(value) if isinstance(value, torch.Tensor) else None)


def _path(path: str, key: Any, is_named: bool) -> str:
    is_inner = not is_named or key in ("__self__", "__func__", "__closure__", "cell_contents")
    return path if is_inner else f"{path}.{key}"


def _same(before: Any, now: Any, by_value: bool = True, depth: int = _DEPTH) -> bool:
    """Whether two values are one, or, by value, hold the same.

    One list (or tuple, dict, set) is not another one of the same content: others may have it, too.
    torch.export leaves copies of all that modules hold.
    """
    if before is now:
        return True
    if type(before) is not type(now) or depth == 0:
        return False
    if not by_value and depth < _DEPTH and isinstance(before, dict | list | set | tuple):
        return False
    if isinstance(before, PLAIN):
        return before == now or (before != before and now != now)
    if isinstance(before, set):
        return before == now
    deeper = functools.partial(_same, by_value=by_value, depth=depth - 1)
    if isinstance(before, dict):
        return before.keys() == now.keys() and all(deeper(v, now[k]) for k, v in before.items())
    if isinstance(before, list | tuple):
        return len(before) == len(now) and all(map(deeper, before, now))
    return by_value and _same_object(before, now, deeper)


def _same_object(before: Any, now: Any, deeper: Callable[[Any, Any], bool]) -> bool:
    if isinstance(before, torch.Tensor):
        return before.shape == now.shape and before.dtype == now.dtype and _equal(before, now)
    if isinstance(before, types.MethodType):
        return before.__func__ is now.__func__ and before.__self__ is now.__self__
    if count := count_of(before):
        return count == count_of(now)
    inside = [[place.copy() for place in places(value)] for value in (before, now)]
    return bool(inside[0]) and deeper(*inside)


def _equal(before: torch.Tensor, now: torch.Tensor) -> bool:
    return before.device == now.device and bool(torch.equal(before, now))
