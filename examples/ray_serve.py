"""Many users on many pairs of GPUs: a Ray Serve deployment, each replica with two ranks.

    pip install "ray[serve]" "hybridiff-compile[serve]"
    python examples/ray_serve.py --pipe FOLDER --replicas 4     # eight GPUs
    python examples/ray_serve.py --model tiny-sd3 --cpu         # to try it without any

Ray starts and watches the replicas, and gives each request to one that is free. Within a replica
`optimize` starts the second rank, and another one if that ends. The address is that of OpenAI's
images API; streaming and urls are left to `hybridiff serve`.
"""

# Ray is not among the packages that this project is developed with.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

import hybridiff_compile
from hybridiff_compile.bench.wanted import Wanted
from hybridiff_compile.errors import WorkerError
from hybridiff_compile.serving import answers
from hybridiff_compile.serving.job import Finished
from hybridiff_compile.serving.serve import Serving, served_of
from hybridiff_compile.serving.steps import png
from hybridiff_compile.serving.wanted import ImageRequest, RefusedError


# A second request waits at the proxy, where another replica may take it.
@serve.deployment(max_ongoing_requests=1)
class Pair:
    """Two ranks that make one request's pictures at a time."""

    def __init__(self, wanted: Wanted, device: str) -> None:
        pipe = wanted.load().to(device)
        pipe.set_progress_bar_config(disable=True)
        self._served = served_of(Serving(wanted), pipe)
        self._model = hybridiff_compile.optimize(pipe, gpus=2, mode=wanted.mode)
        width, height = self._served.sizes[0]
        self._model.compile(**{**self._served.defaults, "width": width, "height": height})

    async def __call__(self, request: Request) -> JSONResponse:
        """Answer `POST /v1/images/generations`."""
        try:
            wanted = ImageRequest.model_validate_json(await request.body())
            call = self._served.call(wanted)
        except ValidationError as e:
            return _failed(400, answers.in_words(e.errors()), answers.first_field(e.errors()))
        except RefusedError as e:
            return _failed(400, str(e), e.field)
        try:
            done = await asyncio.to_thread(self._make, call)
        except WorkerError as e:  # the next call starts another worker
            return _failed(503, str(e))
        data = [{"b64_json": answers.base64_of(picture)} for picture in done.pictures]
        return JSONResponse(answers.whole(done, data))

    def _make(self, call: dict[str, Any]) -> Finished:
        made = self._model(**call).images
        report = self._model.report
        seconds = sum(step.seconds for step in report.steps)
        return Finished(tuple(map(png, made)), seconds, str(report))


def _failed(status: int, reason: str, field: str | None = None) -> JSONResponse:
    return JSONResponse(answers.error(status, reason, field), status)


def main() -> None:
    """Deploy, and wait."""
    parser = argparse.ArgumentParser(description="Pairs of ranks behind Ray Serve.")
    parser.add_argument("--model", help="an embedded model")
    parser.add_argument("--pipe", type=Path, help="folder of a saved pipeline")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--cpu", action="store_true", help="two CPU cores a replica, to try it")
    asked = parser.parse_args()
    needs = {"num_cpus": 2} if asked.cpu else {"num_gpus": 2}
    pairs = Pair.options(num_replicas=asked.replicas, ray_actor_options=needs)
    wanted = Wanted(asked.model, asked.pipe and asked.pipe.resolve())
    application = pairs.bind(wanted, "cpu" if asked.cpu else "cuda")
    serve.run(application, route_prefix="/v1/images/generations", blocking=True)


if __name__ == "__main__":
    main()
