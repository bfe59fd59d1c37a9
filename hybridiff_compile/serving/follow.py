"""A request's events as they come, for as long as its client is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request

from hybridiff_compile.serving.job import Event, Failed, Finished, Job
from hybridiff_compile.serving.studio import Studio

#: Of nginx: the client closed its connection; nobody reads it but the log.
_GONE = Failed(499, "the client has left")


def follow(
    studio: Studio, call: dict[str, Any], previews: int, request: Request
) -> AsyncIterator[Event]:
    """Put a call into the queue.

    Returns:
        What happens to it, the outcome last. The job is given up when the client leaves, and when
        nobody iterates any more.

    Raises:
        FullError: there is no place in the queue.
    """
    loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()
    job = Job(call, lambda event: _put(loop, events, event), previews)
    studio.submit(job)
    return _events(job, events, request)


def _put(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event], event: Event) -> None:
    loop.call_soon_threadsafe(events.put_nowait, event)


async def _events(job: Job, events: asyncio.Queue[Event], request: Request) -> AsyncIterator[Event]:
    leaves = asyncio.create_task(_leaves(request, events))
    try:
        event: Event | None = None
        while not isinstance(event, Finished | Failed):
            event = await events.get()
            yield event
    finally:
        leaves.cancel()
        job.leave()


async def _leaves(request: Request, events: asyncio.Queue[Event]) -> None:
    """Tell when the client is gone, as the last event."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    events.put_nowait(_GONE)
