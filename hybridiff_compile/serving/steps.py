"""What a pipeline shows after each of its steps, and a preview of it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

#: Called after each step with its index and the noisy latents.
Told = Callable[[int, torch.Tensor | None], None]


def keywords(takes: frozenset[str], told: Told) -> dict[str, Any]:
    """Keywords of a pipeline's call that make it tell of its steps; {} if it cannot.

    Args:
        takes: names of the parameters of its call.
        told: may raise, which ends the call.
    """
    if "callback_on_step_end" in takes:

        def at_end(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
            told(step, values.get("latents"))
            return values

        return {"callback_on_step_end": at_end}
    if "callback" in takes:

        def each(step: int, t: Any, latents: torch.Tensor) -> None:
            told(step, latents)

        return {"callback": each} | ({"callback_steps": 1} if "callback_steps" in takes else {})
    return {}


def preview(pipe: Any, latents: torch.Tensor | None) -> bytes | None:
    """A PNG of the first picture as its latents are now; None if that takes more than its VAE.

    Latents that are packed into tokens have no picture's shape. A VAE that must be cast to float32
    is not touched in the midst of a call.
    """
    vae, processor = getattr(pipe, "vae", None), getattr(pipe, "image_processor", None)
    if latents is None or latents.ndim != 4 or vae is None or processor is None:
        return None
    if vae.dtype != latents.dtype:
        return None
    if getattr(vae.config, "force_upcast", False) and vae.dtype == torch.float16:
        return None
    scale, shift = (getattr(vae.config, f"{name}_factor", None) for name in ("scaling", "shift"))
    with torch.no_grad():
        decoded = vae.decode(latents[:1] / (scale or 1) + (shift or 0), return_dict=False)[0]
    return png(processor.postprocess(decoded, output_type="pil")[0])


def png(picture: Image.Image) -> bytes:
    """A picture as a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
