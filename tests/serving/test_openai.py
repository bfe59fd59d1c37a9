"""The server as the real `openai` client sees it."""

from __future__ import annotations

import asyncio
import io
from base64 import b64decode
from typing import Any

import httpx2 as httpx
import numpy as np
import openai
import psutil
import pytest
import torch
from PIL import Image

import hybridiff_compile
from hybridiff_compile.bench import models
from tests import pipelines
from tests.serving.conftest import Server

SHORT = {"num_inference_steps": 6, "seed": 3}


def picture(text: str | None) -> np.ndarray:
    assert text is not None
    return np.asarray(Image.open(io.BytesIO(b64decode(text))))


def short(server: Server, **more: Any) -> Any:
    extra = SHORT | more.pop("extra", {})
    return server.client().images.generate(prompt=pipelines.PROMPT, extra_body=extra, **more)


def metric(server: Server, name: str) -> float:
    for line in httpx.get(f"{server.url}/metrics").text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[1])
    return 0.0


def test_a_picture_is_that_of_the_same_model_here(server: Server) -> None:
    (made,) = short(server).data
    call = models.call_settings("tiny-sd3") | {"num_inference_steps": 6}
    with hybridiff_compile.optimize(pipelines.load("tiny-sd3")) as model:
        generator = torch.Generator().manual_seed(3)
        here = model(pipelines.PROMPT, generator=generator, **call).images[0]
    assert np.array_equal(picture(made.b64_json), np.asarray(here))


def test_each_of_n_pictures_has_a_seed_of_its_own(server: Server) -> None:
    first, second = short(server, n=2).data
    (alone,) = short(server, extra={"seed": 4}).data
    assert not np.array_equal(picture(first.b64_json), picture(second.b64_json))
    # Rows of another batch size are not the same to the last bit; the pictures are.
    off = picture(second.b64_json).astype(int) - picture(alone.b64_json).astype(int)
    assert np.abs(off).max() <= 1


def test_a_picture_can_be_fetched_by_its_url(server: Server) -> None:
    (made,) = short(server, response_format="url", size="64x64").data
    (inside,) = short(server).data
    fetched = httpx.get(made.url)
    assert fetched.headers["content-type"] == "image/png"
    assert fetched.content == b64decode(inside.b64_json)
    assert httpx.get(f"{server.url}/v1/images/files/none").status_code == 404


def test_events_tell_of_each_step_and_show_previews(server: Server) -> None:
    events = list(short(server, stream=True, partial_images=2))
    steps = [e for e in events if e.type == "image_generation.step"]
    assert [(e.step, e.steps, e.phase) for e in steps] == [(i, 6, "serial") for i in range(6)]
    previews = [picture(e.b64_json) for e in events if e.type == "image_generation.partial_image"]
    assert [p.shape for p in previews] == [(64, 64, 3)] * 2
    assert events[-1].type == "image_generation.completed"
    last = picture(events[-1].b64_json).astype(float)
    noisy, better = (np.abs(p - last).mean() for p in previews)
    assert noisy > better > 0
    assert np.array_equal(last, picture(short(server).data[0].b64_json))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"n": 5}, "n=5: Input should be less than or equal to 4"),
        ({"n": 0}, "n=0: Input should be greater"),
        ({"size": "65x64"}, "size='65x64' is not served; choose one of 64x64"),
        ({"extra": {"seed": -1}}, "seed=-1: "),
        ({"extra": {"num_inference_steps": 0}}, "num_inference_steps=0: "),
        ({"extra": {"steps": 3}}, "steps=3: Extra inputs"),
        ({"extra": {"guidance_scale": "much"}}, "guidance_scale='much': "),
        ({"extra": {"prompt": ""}}, "prompt='': "),
    ],
)
def test_bad_input_is_a_400_that_names_it(server: Server, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said) as error:
        short(server, **asked)
    assert error.value.type == "invalid_request_error"


def test_another_model_is_not_found(server: Server) -> None:
    with pytest.raises(openai.NotFoundError, match="'dall-e-3' is not served here; tiny-sd3 is"):
        short(server, model="dall-e-3")
    assert [m.id for m in server.client().models.list()] == ["tiny-sd3"]
    assert short(server, model="tiny-sd3").data


def test_fifty_at_once_all_get_their_pictures(server: Server) -> None:
    client = server.async_client()

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(
            *(
                client.images.generate(
                    prompt="x", extra_body={"seed": i % 5, "num_inference_steps": 2}
                )
                for i in range(50)
            )
        )

    made = [picture(answer.data[0].b64_json).tobytes() for answer in asyncio.run(all_of_them())]
    assert len(set(made)) == 5
    assert all(made[i] == made[i % 5] for i in range(50))


def test_a_client_that_leaves_makes_room_at_the_next_step(server: Server) -> None:
    client = server.async_client()

    async def leave() -> None:
        long = client.images.generate(prompt="x", extra_body={"num_inference_steps": 200})
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(long, 1.0)

    before = metric(server, 'hybridiff_requests_total{status="499"}')
    made = metric(server, "hybridiff_pictures_total")
    asyncio.run(leave())
    assert short(server).data
    assert metric(server, 'hybridiff_requests_total{status="499"}') == before + 1
    assert metric(server, "hybridiff_pictures_total") == made + 1


def test_a_killed_worker_costs_no_request(server: Server) -> None:
    (expected,) = short(server).data
    before = metric(server, "hybridiff_worker_deaths_total")
    client = server.async_client()

    async def killed() -> Any:
        extra = {"num_inference_steps": 60, "seed": 3}
        long = asyncio.create_task(client.images.generate(prompt="x", extra_body=extra))
        while metric(server, "hybridiff_requests_running") == 0:
            await asyncio.sleep(0.05)
        server.worker().kill()
        return await long

    assert len(asyncio.run(killed()).data) == 1
    assert metric(server, "hybridiff_worker_deaths_total") == before + 1
    assert short(server).data[0].b64_json == expected.b64_json


def test_sigterm_answers_what_was_taken_and_refuses_the_rest(start: Any) -> None:
    with start("--model", "tiny-sd3") as server:
        client = server.async_client()
        worker = server.worker()

        async def drained() -> list[Any]:
            extra = {"num_inference_steps": 40}
            taken = [
                asyncio.create_task(client.images.generate(prompt="x", extra_body=extra))
                for _ in range(3)
            ]
            while metric(server, "hybridiff_requests_waiting") < 2:
                await asyncio.sleep(0.05)
            server.process.terminate()
            return await asyncio.gather(*taken)

        assert [len(answer.data) for answer in asyncio.run(drained())] == [1, 1, 1]
        assert server.process.wait(30) == 0
        with pytest.raises(openai.APIConnectionError):
            short(server)
        assert not psutil.pid_exists(worker.pid)
        assert "all requests are answered; the worker has ended" in server.log.read_text()
