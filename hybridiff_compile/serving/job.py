"""A request on its way: what it asks for, and what its client is told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Step:
    """A denoising step is done.

    Attributes:
        index: from 0; it starts again if the pictures had to be begun again.
        steps: of the picture.
        phase: as `Model.progress` names it.
        preview: a PNG of the first picture as it is now; None if none was asked for.
    """

    index: int
    steps: int
    phase: str
    preview: bytes | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The pictures, as PNG files; and how they were made, as `print(model.report)` says it."""

    pictures: tuple[bytes, ...]
    seconds: float
    report: str


@dataclass(frozen=True, slots=True)
class Failed:
    """There are no pictures.

    Attributes:
        status: of HTTP: 400 if the request is at fault, 503 if another try may succeed, else 500.
        reason: for the client.
    """

    status: int
    reason: str


Event = Step | Finished | Failed


class LeftError(Exception):
    """The client has left; raised between two steps of its pictures."""


@dataclass(eq=False)
class Job:
    """A request that has a place in the queue.

    Attributes:
        call: keywords of the pipeline's call.
        tell: takes what happens, from the thread that makes pictures; the last of it is a Finished
            or a Failed. It is not called once the client has left.
        previews: how many are wanted.
        place: in the queue, once it has one.
    """

    call: dict[str, Any]
    tell: Callable[[Event], None]
    previews: int = 0
    place: Future[None] | None = None
    _left: threading.Event = field(default_factory=threading.Event)

    def leave(self) -> None:
        """Nobody waits for these pictures: they give up their place, or end at their next step."""
        self._left.set()
        if self.place is not None:
            self.place.cancel()

    @property
    def has_left(self) -> bool:
        """Whether nobody waits for these pictures."""
        return self._left.is_set()

    def send(self, event: Event) -> None:
        """Tell the client, if it is still there."""
        if not self.has_left:
            self.tell(event)
