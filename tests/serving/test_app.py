"""The answers of the application, without a model behind it."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import httpx2 as httpx
import openai
import pytest
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent

from hybridiff_compile.serving import answers
from hybridiff_compile.serving.app import Images, application
from hybridiff_compile.serving.follow import follow
from hybridiff_compile.serving.job import Event, Failed, Finished, Job, Step
from hybridiff_compile.serving.metrics import Metrics
from hybridiff_compile.serving.studio import FullError
from hybridiff_compile.serving.wanted import Served

SERVED = Served("small", [(8, 8)], frozenset({"num_images_per_prompt"}), {})


class Studio:
    """Tells each job of the same events at once; without any, it is full."""

    def __init__(self, *events: Event) -> None:
        self.events, self.previews = events, 0

    def submit(self, job: Job) -> None:
        if not self.events:
            raise FullError
        self.previews = job.previews
        for event in self.events:
            job.send(event)


def asked(studio: Any, **more: Any) -> Any:
    app = application(Images(SERVED, studio, Metrics()))

    async def ask() -> Any:
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app=app))
        client = openai.AsyncOpenAI(
            base_url="http://here/v1", api_key="none", max_retries=0, http_client=http
        )
        answer = await client.images.generate(prompt="x", **more)
        return [event async for event in answer] if more.get("stream") else answer

    return asyncio.run(ask())


def test_a_full_queue_is_a_429_that_says_when_to_try_again() -> None:
    with pytest.raises(openai.RateLimitError, match="the queue is full") as error:
        asked(Studio())
    assert error.value.response.headers["retry-after"] == "5"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [400, 500, 503])
def test_what_fails_before_a_step_has_its_status(status: int, stream: bool) -> None:
    with pytest.raises(openai.APIStatusError, match="why") as error:
        asked(Studio(Failed(status, "why")), stream=stream)
    assert error.value.status_code == status
    assert ("retry-after" in error.value.response.headers) == (status == 503)


def test_what_fails_in_a_stream_ends_it() -> None:
    with pytest.raises(openai.APIError, match="why"):
        asked(Studio(Step(0, 2, "serial"), Failed(500, "why")), stream=True)


def test_what_fails_after_a_step_has_its_status_where_nothing_is_streamed() -> None:
    with pytest.raises(openai.InternalServerError, match="why"):
        asked(Studio(Step(0, 2, "serial"), Failed(500, "why")))


def test_an_answer_says_how_the_pictures_were_made() -> None:
    done = Finished((b"one", b"two"), 1.25, "2 steps")
    answer = asked(Studio(Step(0, 1, "serial"), done), n=2, response_format="url")
    assert answer.hybridiff == {"seconds": 1.25, "report": "2 steps"}
    assert all(one.url.startswith("http://here/v1/images/files/") for one in answer.data)


def test_a_stream_numbers_its_previews() -> None:
    steps = (Step(0, 3, "serial", b"a"), Step(1, 3, "forecast"), Step(2, 3, "serial", b"b"))
    events = asked(Studio(*steps, Finished((b"c",), 1.0, "")), stream=True)
    partial = [e for e in events if e.type == "image_generation.partial_image"]
    assert [(e.partial_image_index, e.b64_json) for e in partial] == [(0, "YQ=="), (1, "Yg==")]
    assert [e.phase for e in events if e.type == "image_generation.step"] == [
        "serial",
        "forecast",
        "serial",
    ]
    assert events[-1].b64_json == "Yw=="


def test_the_events_of_a_stream_are_what_openai_says_they_are() -> None:
    steps = (Step(0, 1, "serial", b"a"), Finished((b"b", b"c"), 1.0, ""))
    _, partial, *made = asked(Studio(*steps), stream=True)
    for event in (partial, *made):
        kind = ImageGenPartialImageEvent if event is partial else ImageGenCompletedEvent
        lacks = kind.model_fields.keys() - event.model_dump().keys() - {"usage"}
        assert lacks <= {"safety_identifier"}
        assert (event.size, event.output_format, event.background) == ("8x8", "png", "opaque")
        assert abs(event.created_at - time.time()) < 60
    assert [event.index for event in made] == [0, 1]


def test_a_request_that_is_dropped_leaves_no_task_behind() -> None:
    studio: Any = Studio(Step(0, 2, "serial"))  # and nothing after it

    async def drop() -> set[asyncio.Task[Any]]:
        request: Any = SimpleNamespace(receive=asyncio.Event().wait)
        events = follow(studio, {}, 0, request)
        assert isinstance(await anext(events), Step)
        waits = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        waits.cancel()
        await asyncio.wait([waits])
        await asyncio.sleep(0)
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(drop()) == set()


def test_previews_are_of_streams_alone() -> None:
    studio = Studio(Finished((b"one",), 1.0, ""))
    asked(studio, stream=True, partial_images=2)
    assert studio.previews == 2
    with pytest.raises(openai.BadRequestError, match="pass stream") as refused:
        asked(studio, stream=False, partial_images=2)
    assert refused.value.param == "partial_images"


@pytest.mark.parametrize("status", [400, 404, 405, 413])
def test_what_the_client_did_wrong_is_no_error_of_the_server(status: int) -> None:
    assert answers.error(status, "why")["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        ('{"prompt": "a", "n": 5}', "application/json", "n=5: Input should be less than or equal"),
        ('{"prompt": "a", "guidance_scale": NaN}', "application/json", "guidance_scale=nan"),
        ("{not json", "application/json", "the body is no JSON: "),
        ('{"prompt": "a"}', "application/x-www-form-urlencoded", "Content-Type: application/json"),
        ("", "application/json", "the body is empty; send a JSON object with a prompt"),
    ],
)
def test_a_body_that_is_refused_is_told_why(body: str, kind: str, says: str) -> None:
    answer = sent("POST", "/v1/images/generations", body, kind)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == (
        says.partition("=")[0] if body.startswith('{"prompt": "a", ') else None
    )
    assert error["code"] is None  # OpenAI's are words


@pytest.mark.parametrize("field", ["size", "model"])
def test_an_error_of_what_is_not_served_names_its_field(field: str) -> None:
    answer = sent("POST", "/v1/images/generations", f'{{"prompt": "a", "{field}": "other"}}')
    assert answer.json()["error"]["param"] == field


def test_null_is_the_default_and_what_is_made_anyway_may_be_asked_for() -> None:
    nothing: Any = dict.fromkeys(("n", "response_format", "stream", "partial_images"))
    done = Finished((b"one",), 1.0, "")
    made = asked(Studio(done), **nothing, output_format="png", background="auto")
    assert [one.b64_json for one in made.data] == ["b25l"]


def test_the_one_model_is_found_by_its_name_and_no_other_is() -> None:
    assert sent("GET", f"/v1/models/{SERVED.name}").json()["id"] == SERVED.name
    assert sent("GET", "/v1/models/other").status_code == 404


def sent(method: str, path: str, body: str = "", kind: str = "application/json") -> Any:
    studio: Any = Studio()
    app = application(Images(SERVED, studio, Metrics()))

    async def send() -> Any:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
            return await http.request(method, path, content=body, headers={"Content-Type": kind})

    return asyncio.run(send())
