"""Changes of a package's JSON: one of each kind of field, or of a field that a test names."""

from __future__ import annotations

import copy as copying
import random
from collections.abc import Callable, Iterator
from typing import Any

Place = tuple[Any, ...]


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Every path into a JSON value but the empty one."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in pairs:
        yield (*at, key)
        if isinstance(child, dict | list):
            yield from places(child, (*at, key))


def get(value: Any, at: Place) -> Any:
    for key in at:
        value = value[key]
    return value


def kind(data: Any, at: Place) -> Place:
    """Paths of one kind differ in their indices only, and lie in nodes that do the same."""
    kinds: list[Any] = []
    for depth, key in enumerate(at):
        parent = get(data, at[:depth])
        kinds.append("*" if isinstance(parent, list) else key)
        if isinstance(parent, list) and isinstance(parent[key], dict):
            kinds.append((parent[key].get("op"), str(parent[key].get("target"))))
    return tuple(kinds)


def deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def changes(value: Any, at: Place) -> Iterator[Any]:
    """Values that can never stand in the place of this one."""
    for new in (None, True, "x", -1, 2**50, 1.5, [], {}, deep(150), {"surprise": 1}):
        if type(new) is not type(value) or (isinstance(new, int) and new is not True):
            if at[0] == "switching" and (new is None or value is None):
                continue  # a setting that is not given
            yield new
    if isinstance(value, dict):
        yield {**value, "surprise": 1}
    if isinstance(value, float | int):
        yield float("nan")  # as a word that JSON does not have


def mutations(data: Any, seed: int) -> Iterator[tuple[Place, Any]]:
    """(path, changed data): one path of each kind, removed or of another type."""
    by_kind: dict[Place, list[Place]] = {}
    for at in places(data):
        by_kind.setdefault(kind(data, at), []).append(at)
    pick = random.Random(seed)
    for those in by_kind.values():
        at = pick.choice(those)
        changed = copying.deepcopy(data)
        others = list(changes(get(data, at), at))
        if others and pick.random() < 0.7:
            get(changed, at[:-1])[at[-1]] = pick.choice(others)
        else:
            del get(changed, at[:-1])[at[-1]]
        yield at, changed


def edit(node: str, **change: Any) -> Callable[[Any], None]:
    """Change a field of a node of the serial program."""

    def apply(data: Any) -> None:
        (found,) = [n for n in data[0]["SERIAL"]["nodes"] if n["name"] == node]
        found.update(change)

    return apply


def at(path: str, value: Any) -> Callable[[Any], None]:
    keys = [int(key) if key.isdigit() else key for key in path.split(".")]

    def apply(data: Any) -> None:
        get(data, tuple(keys[:-1]))[keys[-1]] = value

    return apply


def args(*items: Any) -> Any:
    return {"tuple": list(items)}
