"""What a denoiser's forward leaves behind in it: found by trying, not by the names of caches.

A captured program computes one step's forward for ever. A denoiser that decides by what it kept of
an earlier call (a cache of features, a counter of steps) would be frozen at that step.
"""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hybridiff_compile.layout import writes

#: Values that hold nothing.
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
# Neither holds what a forward could leave behind: classes, modules of code, and compiled functions.
_CLOSED = (type, types.ModuleType, types.BuiltinFunctionType)
_ORDINARY = (torch.Tensor, nn.Parameter)  # what FakeTensors and quantised weights are not
#: Objects that are looked at; more hold a whole program, not a denoiser.
MOST = 500_000


@dataclass(frozen=True)
class Held:
    """One container and what it held: an object's attributes, a dict, list, set, or a closure."""

    path: str
    owner: Any
    content: Any
    restore: Callable[[], None]


@dataclass(frozen=True)
class State:
    """What a denoiser held at one moment beside its parameters' values; it can be put back.

    Tensors are compared by what they hold when they are others, and by torch's count of writes
    when they are the same: one that was written in place cannot be put back. One that was made to
    point elsewhere, as offloading does with weights, can be.
    """

    denoiser: nn.Module
    held: tuple[Held, ...]
    versions: dict[int, tuple[str, torch.Tensor, int | None]]
    data: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    @classmethod
    def of(cls, denoiser: nn.Module) -> State:
        """Look at everything that the denoiser reaches: modules, hooks, processors, closures."""
        held, versions = [], {}
        for found in _reached(denoiser):
            if isinstance(found, Held):
                held.append(found)
            else:
                versions[id(found[1])] = found
        with torch.no_grad():
            data = [(t, t.detach()) for _, t, _ in versions.values() if type(t) in _ORDINARY]
        return cls(denoiser, tuple(held), versions, tuple(data))

    def changes(self) -> list[str]:
        """Paths of what is no longer as it was."""
        found = [h.path for h in self.held if not _same(h.content, _content(h.owner))]
        found += [path for path, t, before in self.versions.values() if writes(t) != before]
        return found

    def written(self) -> list[str]:
        """Paths of tensors that were written in place since."""
        return [path for path, t, before in self.versions.values() if writes(t) != before]

    def restore(self) -> None:
        """Put back what was exchanged; a tensor that was written in place stays so."""
        for held in self.held:
            if not _same(held.content, _content(held.owner), by_value=False):
                held.restore()
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


def _reached(denoiser: nn.Module) -> Iterator[Held | tuple[str, torch.Tensor, int | None]]:
    seen: set[int] = set()
    todo: list[tuple[str, Any]] = [(type(denoiser).__name__, denoiser)]
    while todo and len(seen) < MOST:
        path, value = todo.pop()
        if isinstance(value, (*PLAIN, *_CLOSED)) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            yield path, value, writes(value)
            continue
        content = _content(value)
        if content is not None and not isinstance(value, tuple):
            yield Held(path, value, content, functools.partial(_put_back, value, content))
        todo += _children(path, value, content)


def _content(value: Any) -> Any:
    """A shallow copy of what a container holds; None for a value that holds nothing."""
    if isinstance(value, dict | list | set | deque | tuple):
        return value if isinstance(value, tuple) else value.copy()
    if isinstance(value, types.CellType):
        try:
            return (value.cell_contents,)
        except ValueError:  # not filled yet
            return None
    if isinstance(value, types.FunctionType | types.MethodType | functools.partial):
        return None
    attributes = getattr(value, "__dict__", None)
    return dict(attributes) if isinstance(attributes, dict) else None


def _children(path: str, value: Any, content: Any) -> list[tuple[str, Any]]:
    if isinstance(value, types.MethodType):
        return [(path, value.__self__), (path, value.__func__)]
    if isinstance(value, functools.partial):
        return [(path, value.func), (path, value.args), (path, value.keywords)]
    if isinstance(value, types.FunctionType):
        return [(path, cell) for cell in value.__closure__ or ()]
    inside = [(f"{path}.{k}", v) for k, v in content.items()] if isinstance(content, dict) else []
    if content is not None and not isinstance(content, dict):
        inside = [(path, v) for v in content]
    if isinstance(value, dict) and not isinstance(value, nn.Module):
        extra = getattr(value, "__dict__", None)  # a subclass with attributes of its own
        inside += [(f"{path}.{k}", v) for k, v in extra.items()] if extra else []
    return inside


def _put_back(value: Any, content: Any) -> None:
    if isinstance(value, types.CellType):
        value.cell_contents = content[0]
    elif isinstance(value, list):
        value[:] = content
    elif isinstance(value, dict | set):
        value.clear()
        value.update(content)
    elif isinstance(value, deque):
        value.clear()
        value.extend(content)
    else:
        attributes = vars(value)
        attributes.clear()
        attributes.update(content)


def _same(before: Any, now: Any, by_value: bool = True, depth: int = 6) -> bool:
    """Whether two values are one, or, by value, hold the same."""
    if before is now:
        return True
    if type(before) is not type(now) or depth == 0:
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
    content = _content(before)
    return content is not None and deeper(content, _content(now))


def _equal(before: torch.Tensor, now: torch.Tensor) -> bool:
    return before.device == now.device and bool(torch.equal(before, now))
