"""Pictures that clients fetch by their address: a bounded number, kept in memory."""

from __future__ import annotations

import secrets
from collections import OrderedDict

#: The oldest goes when one more comes; clients fetch theirs at once.
KEPT = 100


class Shelf:
    """The latest pictures by name."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._pictures: OrderedDict[str, bytes] = OrderedDict()

    def put(self, picture: bytes) -> str:
        """Keep a picture; returns a name that nobody guesses."""
        name = secrets.token_urlsafe(16)
        self._pictures[name] = picture
        while len(self._pictures) > self._kept:
            self._pictures.popitem(last=False)
        return name

    def get(self, name: str) -> bytes | None:
        """A picture; None if it is not there, or no more."""
        return self._pictures.get(name)
