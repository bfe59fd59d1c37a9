"""What users' code reads of the pipelines and schedulers that it has at hand.

They are not walked through as a whole: each step changes them. But a hook or a processor may go by
the step or by the guidance, and those it names.
"""

from __future__ import annotations

import types
from typing import Any

from hybridiff_compile.capture.place import Names
from hybridiff_compile.capture.reach import has_config, is_users, names_in


class Pipelines:
    """Of one walk: the pipelines and schedulers that it met, and the names in the code it met."""

    def __init__(self) -> None:
        self._met: dict[int, Any] = {}
        self._given: dict[int, set[str]] = {}
        self._names: set[str] = set()

    def meet(self, value: Any) -> None:
        """Note a value that the walk has come to."""
        if isinstance(value, types.FunctionType):
            if is_users(value.__globals__.get("__name__")):
                self._names |= names_in(value)
        elif has_config(value):
            self._met[id(value)] = value

    def places(self) -> list[Names]:
        """The places that were not given yet; they may lead to more values."""
        found: list[Names] = []
        for owner in self._met.values():
            given = self._given.setdefault(id(owner), set())
            new = (self._wanted(type(owner)) & vars(owner).keys()) - given
            if new:
                given |= new
                found.append(Names(owner, tuple(sorted(new))))
        return found

    def _wanted(self, kind: type) -> set[str]:
        """The attributes behind the names: `pipe.guidance_scale` is kept as `_guidance_scale`."""
        wanted = self._names | {f"_{name}" for name in self._names}
        for name in self._names:
            if isinstance(made := getattr(kind, name, None), property):
                wanted |= names_in(made.fget)
        return wanted
