"""What a client is answered, in the forms of OpenAI's images API."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from hybridiff_compile.serving.job import Event, Failed, Finished, Step

_KINDS = {
    429: "rate_limit_error",
    503: "service_unavailable",
}
Data = Callable[[tuple[bytes, ...]], list[dict[str, str]]]


def base64_of(picture: bytes) -> str:
    """A picture as text."""
    return b64encode(picture).decode("ascii")


def error(status: int, reason: str, field: str | None = None) -> dict[str, Any]:
    """An error of a status of HTTP, and the field of the body that it is about."""
    others = "invalid_request_error" if 400 <= status < 500 else "server_error"
    kind = _KINDS.get(status, others)
    return {"error": {"message": reason, "type": kind, "param": field, "code": None}}


def first_field(errors: Sequence[Mapping[str, Any]]) -> str | None:
    """The first field of a body that is wrong; None if the body is no JSON object."""
    names = (part for one in errors for part in one["loc"] if part != "body")
    return next((name for name in names if isinstance(name, str)), None)


def in_words(errors: Sequence[Mapping[str, Any]]) -> str:
    """What is wrong with a body, one clause for each field."""
    said = []
    for one in errors:
        where = ".".join(str(part) for part in one["loc"] if part != "body")
        said.append(_clause(where, one))
    return "; ".join(said)


def _clause(where: str, one: Mapping[str, Any]) -> str:
    if one["type"] == "json_invalid":
        return f"the body is no JSON: {one['ctx']['error']} at character {where}"
    if one["type"] == "model_attributes_type":
        return "the body is no JSON object; send one, with Content-Type: application/json"
    if not where:
        return "the body is empty; send a JSON object with a prompt"
    given = one.get("input")
    is_short = isinstance(given, bool | int | float) or (isinstance(given, str) and len(given) < 40)
    value = f"={given!r}" if is_short else ""
    return f"{where}{value}: {one['msg']}"


def whole(done: Finished, data: list[dict[str, str]]) -> dict[str, Any]:
    """The answer to a request that is not streamed."""
    return {"created": int(time.time()), "data": data} | how(done)


def how(done: Finished) -> dict[str, Any]:
    """How pictures were made; OpenAI's clients keep what they do not know."""
    return {"hybridiff": {"seconds": round(done.seconds, 3), "report": done.report}}


async def streamed(events: AsyncIterator[Event], data: Data, size: str) -> AsyncIterator[str]:
    """Events as a server sends them.

    One `image_generation.step` a step; one `image_generation.partial_image` a preview; and one
    `image_generation.completed` a picture. An `error` ends it in their place.

    Args:
        events: of the request.
        data: how its pictures are sent.
        size: of them, "WxH".
    """
    what = {"size": size, "quality": "auto", "output_format": "png", "background": "opaque"}
    previews = 0
    async for event in events:
        if isinstance(event, Step):
            at = {"step": event.index, "steps": event.steps, "phase": event.phase}
            yield _sent("image_generation.step", at)
            if event.preview is not None:
                shown = {"b64_json": base64_of(event.preview), "partial_image_index": previews}
                yield _sent("image_generation.partial_image", _made_now() | what | shown)
                previews += 1
        elif isinstance(event, Failed):
            yield _sent("error", error(event.status, event.reason))
        else:
            for index, picture in enumerate(data(event.pictures)):
                shown = _made_now() | what | how(event) | {"index": index} | picture
                yield _sent("image_generation.completed", shown)


def _made_now() -> dict[str, int]:
    return {"created_at": int(time.time())}


def _sent(kind: str, content: Mapping[str, Any]) -> str:
    body = {"type": kind, **content}
    return f"event: {kind}\ndata: {json.dumps(body)}\n\n"
