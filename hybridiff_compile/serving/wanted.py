"""What a client asks for, checked before it takes a place in the queue."""

from __future__ import annotations

import inspect
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from hybridiff_compile.errors import ConfigError

#: Pictures of one request. Each number is a shape of its own, captured when it first comes.
MOST_PICTURES = 4
MOST_STEPS = 200
#: One of torch's seeds is added to for each further picture.
_SEEDS = 2**63 - MOST_PICTURES


class RefusedError(ConfigError):
    """A field of a request asks for what is not served.

    Attributes:
        field: its name.
        status: of HTTP.
    """

    def __init__(self, field: str, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.field, self.status = field, status


Seed = Annotated[int, Field(ge=0, lt=_SEEDS)]


class ImageRequest(BaseModel):
    """The body of `POST /v1/images/generations`, in OpenAI's names.

    Attributes:
        prompt: what to draw.
        model: the served one's name, or nothing.
        n: pictures.
        size: "WxH" in pixels, one of those that are served; "auto" is the first of them.
        response_format: "b64_json", the pictures in the answer; or "url", where to get them.
        stream: answer by server-sent events, one for each step.
        partial_images: how many steps' events hold a preview, evenly spaced.
        seed: of the first picture, the next ones count on from it; None takes a random one.
        negative_prompt, num_inference_steps, guidance_scale: as in diffusers; not OpenAI's.
        quality, style, moderation, user: OpenAI's; taken, and not used.
        output_format, background: OpenAI's; the values that are made here.
    """

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str, Field(min_length=1, max_length=4000)]
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=MOST_PICTURES)] = 1
    size: str | None = None
    response_format: Literal["b64_json", "url"] = "b64_json"
    stream: bool = False
    partial_images: Annotated[int, Field(ge=0, le=MOST_STEPS)] = 0
    seed: Seed | None = None
    negative_prompt: Annotated[str, Field(max_length=4000)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = None
    quality: str | None = None
    style: str | None = None
    moderation: str | None = None
    user: str | None = None
    output_format: Literal["png"] = "png"
    background: Literal["auto", "opaque"] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, body: Any) -> Any:
        """OpenAI's client sends null for what is left out."""
        if not isinstance(body, dict):
            return body
        return {key: value for key, value in body.items() if value is not None}


@dataclass(frozen=True)
class Served:
    """What a server serves.

    Attributes:
        name: of the model.
        sizes: width and height of the pictures, pixels; the first is taken if none is named.
        takes: names of the parameters of the pipeline's call.
        defaults: keywords of every call; what a client asks for replaces them.
    """

    name: str
    sizes: Sequence[tuple[int, int]]
    takes: frozenset[str]
    defaults: Mapping[str, Any]

    def call(self, wanted: ImageRequest) -> dict[str, Any]:
        """The keywords of the pipeline's call.

        Raises:
            RefusedError: a size that is not served, what the pipeline has no parameter for, or
                previews that nobody would see.
        """
        if wanted.partial_images and not wanted.stream:
            reason = f"partial_images={wanted.partial_images} are events of a stream; pass stream."
            raise RefusedError("partial_images", reason)
        width, height = self._size(wanted.size)
        seed = random.randrange(2**31) if wanted.seed is None else wanted.seed
        seeds = range(seed, seed + wanted.n)
        asked = {
            "negative_prompt": wanted.negative_prompt,
            "num_inference_steps": wanted.num_inference_steps,
            "guidance_scale": wanted.guidance_scale,
            "num_images_per_prompt": wanted.n if wanted.n > 1 else None,
        }
        given = {name: value for name, value in asked.items() if value is not None}
        if lacking := sorted(given.keys() - self.takes):
            reason = f"{', '.join(lacking)}: {self.name} has no such parameter."
            raise RefusedError("n" if "num_images_per_prompt" in lacking else lacking[0], reason)
        fixed = {"prompt": wanted.prompt, "width": width, "height": height}
        # Always on the CPU, as diffusers advises: a seed is then one picture on every machine.
        generators = [torch.Generator("cpu").manual_seed(one) for one in seeds]
        return {**self.defaults, **given, **fixed, "generator": generators}

    def _size(self, wanted: str | None) -> tuple[int, int]:
        if wanted in (None, "auto"):
            return self.sizes[0]
        for size in self.sizes:
            if wanted == in_words(size):
                return size
        known = ", ".join(map(in_words, self.sizes))
        raise RefusedError("size", f"size={wanted!r} is not served; choose one of {known}.")


def in_words(size: tuple[int, int]) -> str:
    """A size as "WxH"."""
    return f"{size[0]}x{size[1]}"


def parameters(pipe: Any) -> frozenset[str]:
    """Names of the parameters of a pipeline's call."""
    return frozenset(inspect.signature(type(pipe).__call__).parameters)


def preview_steps(steps: int, previews: int) -> frozenset[int]:
    """Steps after which a preview is made: evenly spaced, the last step left out.

    Args:
        steps: of the picture.
        previews: how many are wanted; fewer are made if there are fewer steps.
    """
    return frozenset((steps * (i + 1)) // (previews + 1) - 1 for i in range(previews)) - {-1}
