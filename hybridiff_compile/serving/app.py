"""The HTTP side: OpenAI's images API, health, metrics and a page to try it on."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from hybridiff_compile.errors import ConfigError
from hybridiff_compile.serving import answers
from hybridiff_compile.serving.follow import follow
from hybridiff_compile.serving.job import Event, Failed, Finished
from hybridiff_compile.serving.metrics import Metrics
from hybridiff_compile.serving.shelf import Shelf
from hybridiff_compile.serving.studio import FullError, Studio
from hybridiff_compile.serving.wanted import ImageRequest, RefusedError, Served, in_words

_PAGE = Path(__file__).with_name("page.html")
#: Seconds after which a client that was refused may try again.
_RETRY_AFTER = "5"


class Images:
    """What the addresses of one model's server answer; the studio is closed by its owner."""

    def __init__(self, served: Served, studio: Studio, metrics: Metrics) -> None:
        self._served, self._studio, self._metrics = served, studio, metrics
        self._shelf, self._created = Shelf(), int(time.time())

    async def generate(self, wanted: ImageRequest, request: Request) -> Response:
        """Make pictures."""
        if wanted.model not in (None, self._served.name):
            reason = f"model={wanted.model!r} is not served here; {self._served.name} is."
            raise RefusedError("model", reason, 404)
        call = self._served.call(wanted)
        events = follow(self._studio, call, wanted.partial_images, request)
        # The status is chosen by the first event: what is wrong with a call is known before a step.
        first = await anext(events)

        def data(pictures: tuple[bytes, ...]) -> list[dict[str, str]]:
            if wanted.response_format == "url":
                return [{"url": self._address(request, one)} for one in pictures]
            return [{"b64_json": answers.base64_of(one)} for one in pictures]

        if wanted.stream and not isinstance(first, Failed):
            size = in_words((call["width"], call["height"]))
            lines = answers.streamed(_from(first, events), data, size)
            return StreamingResponse(lines, media_type="text/event-stream")
        last = [event async for event in _from(first, events)][-1]
        if isinstance(last, Failed):
            return _failed(last.status, last.reason)
        assert isinstance(last, Finished)  # events end by an outcome
        return JSONResponse(answers.whole(last, data(last.pictures)))

    def _address(self, request: Request, picture: bytes) -> str:
        return str(request.url_for("picture", name=self._shelf.put(picture)))

    async def picture(self, name: str) -> Response:
        """A picture that was asked for as a url."""
        found = self._shelf.get(name)
        if found is None:
            return _failed(404, "this picture is not kept any more.")
        return Response(found, media_type="image/png")

    async def models(self) -> dict[str, Any]:
        """The one model."""
        return {"object": "list", "data": [self._only()]}

    async def model(self, name: str) -> dict[str, Any]:
        """What there is to know of the one model."""
        if name != self._served.name:
            raise HTTPException(404, f"{name!r} is not served here; {self._served.name} is.")
        return self._only()

    def _only(self) -> dict[str, Any]:
        name = self._served.name
        return {"id": name, "object": "model", "created": self._created, "owned_by": "local"}

    async def health(self) -> dict[str, Any]:
        """Answered once the model is ready; the address is closed again before the end."""
        return {"status": "ok", "model": self._served.name, "sizes": self._served.sizes}

    async def measured(self) -> Response:
        """As Prometheus reads it."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def page(self) -> Response:
        """A page that takes a prompt and shows its picture step by step."""
        return HTMLResponse(_PAGE.read_text(encoding="utf-8"))

    async def refused(self, request: Request, error: Exception) -> Response:
        """What was wrong with a request that got no place in the queue."""
        field = None
        match error:
            case RequestValidationError():
                status, reason = 400, answers.in_words(error.errors())
                field = answers.first_field(error.errors())
            case FullError():
                status, reason = 429, "the queue is full; try again in a while."
            case RefusedError():
                status, reason, field = error.status, str(error), error.field
            case HTTPException():
                status, reason = error.status_code, str(error.detail)
            case _:
                status, reason = 400, str(error)
        if request.method == "POST":
            self._metrics.refused(status)
        return _failed(status, reason, field)


def application(images: Images) -> FastAPI:
    """The addresses."""
    app = FastAPI(title="hybridiff", redoc_url=None)
    app.post("/v1/images/generations", response_model=None)(images.generate)
    app.get("/v1/images/files/{name}", name="picture")(images.picture)
    app.get("/v1/models")(images.models)
    app.get("/v1/models/{name}")(images.model)
    app.get("/health")(images.health)
    app.get("/metrics")(images.measured)
    app.get("/", include_in_schema=False)(images.page)
    for kind in (RequestValidationError, HTTPException, ConfigError, FullError):
        app.exception_handler(kind)(images.refused)
    return app


def _failed(status: int, reason: str, field: str | None = None) -> JSONResponse:
    headers = {"Retry-After": _RETRY_AFTER} if status in (429, 503) else None
    return JSONResponse(answers.error(status, reason, field), status, headers=headers)


async def _from(first: Event, events: AsyncIterator[Event]) -> AsyncIterator[Event]:
    yield first
    async for event in events:
        yield event
