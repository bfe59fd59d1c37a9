"""Where values are held: read at any time, and put back."""

from __future__ import annotations

import types
from collections import deque
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import torch

#: Values that hold nothing.
PLAIN = (
    *(bool, int, float, complex, Decimal, Fraction),
    *(str, bytes, type(None), torch.dtype, torch.device),
)

_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Content:
    """All that a dict (of an object's attributes, too), a list or the like holds."""

    owner: Any

    def entries(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Its keys, and the values by them."""
        owner = self.owner
        if isinstance(owner, dict):
            return tuple(owner), tuple(owner.values())
        values = sorted(owner, key=_order) if isinstance(owner, set | frozenset) else owner
        return tuple(range(len(values))), tuple(values)

    def copy(self) -> Any:
        """What `put` takes: a shallow copy."""
        if isinstance(self.owner, dict):
            return dict(self.owner)
        kind = next((k for k in (tuple, set, frozenset) if isinstance(self.owner, k)), list)
        return kind(self.owner)

    def put(self, content: Any) -> None:
        """Make it hold what it held."""
        if isinstance(self.owner, list):
            self.owner[:] = content
        elif isinstance(self.owner, deque):
            self.owner.clear()
            self.owner.extend(content)
        elif isinstance(self.owner, dict | set):
            self.owner.clear()
            self.owner.update(content)


@dataclass(frozen=True, slots=True)
class Names:
    """Some names only, of an object, a class, or the dict of a module's globals."""

    owner: Any
    names: tuple[str, ...]

    def values(self) -> tuple[Any, ...]:
        """By each name; a mark for one that is not there."""
        owner = vars(self.owner) if isinstance(self.owner, type) else self.owner
        if isinstance(owner, dict | types.MappingProxyType):
            return tuple(owner.get(name, _ABSENT) for name in self.names)
        return tuple(attribute(owner, name) for name in self.names)

    def entries(self) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        """The names that are there, and the values by them."""
        found = self.copy()
        return tuple(found), tuple(found.values())

    def copy(self) -> dict[str, Any]:
        """What `put` takes."""
        pairs = zip(self.names, self.values(), strict=True)
        return {name: value for name, value in pairs if value is not _ABSENT}

    def put(self, content: dict[str, Any]) -> None:
        """Make the names mean what they meant; those that were not there are taken away."""
        now = self.copy()
        for name in self.names:
            if name in content and content[name] is not now.get(name, _ABSENT):
                self._set(name, content[name])
            elif name in now and name not in content:
                self._delete(name)

    def _set(self, name: str, value: Any) -> None:
        if isinstance(self.owner, dict):
            self.owner[name] = value
        elif isinstance(self.owner, type):
            setattr(self.owner, name, value)
        else:
            object.__setattr__(self.owner, name, value)  # one that is frozen, too

    def _delete(self, name: str) -> None:
        if isinstance(self.owner, dict):
            del self.owner[name]
        elif isinstance(self.owner, type):
            delattr(self.owner, name)
        else:
            object.__delattr__(self.owner, name)


Place = Content | Names


def _order(value: Any) -> str:
    return repr(value) if isinstance(value, PLAIN) else type(value).__name__


def attribute(owner: Any, name: str) -> Any:
    """An attribute; a mark for one that is not there."""
    try:
        return getattr(owner, name, _ABSENT)
    except ValueError:  # a cell that is not filled yet
        return _ABSENT
