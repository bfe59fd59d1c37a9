"""The models that measurements run on: two trained embedded pipelines, one of SDXL's shape."""

# diffusers exports its names lazily, which pyright does not see.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from hybridiff_compile.errors import ConfigError

ASSETS = Path(__file__).resolve().parent.parent / "assets"
NAMES = ("tiny-sdxl", "tiny-sd3", "sdxl-small")
#: Those whose pictures show something; the pictures of the other are noise.
DRAWING = ("tiny-sdxl", "tiny-sd3")

_CALL_SETTINGS: dict[str, dict[str, Any]] = {
    "tiny-sdxl": {"height": 64, "width": 64, "guidance_scale": 5.0},
    # Without a third encoder the pipeline appends that many rows of zeros to the text: the trained
    # number, where the pipeline's default of 256 costs nearly three times the compute.
    "tiny-sd3": {"height": 64, "width": 64, "guidance_scale": 5.0, "max_sequence_length": 16},
    "sdxl-small": {"height": 128, "width": 128, "guidance_scale": 5.0},
}


def load(name: str) -> DiffusionPipeline:
    """Load one of NAMES, on the CPU in fp32, offline."""
    check_names([name])
    folder = ASSETS / ("tiny-sdxl" if name == "sdxl-small" else name)
    pipe = load_folder(folder, **({} if name == "tiny-sd3" else {"add_watermarker": False}))
    return _with_large_unet(pipe) if name == "sdxl-small" else pipe


def load_folder(folder: Path, **options: Any) -> DiffusionPipeline:
    """Load a pipeline that was saved in a folder, offline.

    Args:
        folder: what `save_pretrained` wrote.
        options: of `DiffusionPipeline.from_pretrained`.

    Raises:
        ConfigError: the folder holds no pipeline, or one that diffusers cannot load.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise ConfigError(
            f"{folder} holds no pipeline: there is no model_index.json in it; name a folder that "
            "pipe.save_pretrained(...) wrote."
        )
    try:
        # diffusers takes an absent part, as SD3's third encoder, only when it is told so again.
        parts = json.loads(index.read_text(encoding="utf-8")).items()
        options = {name: None for name, of in parts if of == [None, None]} | options
        with _quiet():
            return DiffusionPipeline.from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError, AttributeError) as e:  # an unknown class is the last of these
        raise ConfigError(
            f"diffusers cannot load {folder}: {e}; repair it, or name another."
        ) from e


def opened(model: str) -> tuple[Any, dict[str, Any]]:
    """A pipeline that shows no progress, and the keywords of a call that it was trained for.

    Args:
        model: one of NAMES, or the folder of a pipeline.

    Raises:
        ConfigError: see `load_folder`.
    """
    known = model in NAMES
    pipe: Any = load(model) if known else load_folder(Path(model))
    pipe.set_progress_bar_config(disable=True)
    return pipe, call_settings(model) if known else {}


def call_settings(name: str) -> dict[str, Any]:
    """The keywords of a pipeline call that the model was trained for (a new dict each time)."""
    check_names([name])
    return dict(_CALL_SETTINGS[name])


def check_names(names: Sequence[str], known: Sequence[str] = NAMES, what: str = "model") -> None:
    """Raise ConfigError for a name that is not known."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"unknown {what} {', '.join(unknown)}; choose from {', '.join(known)}.")


def _with_large_unet(pipe: Any) -> DiffusionPipeline:
    """Swap in a UNet of SDXL's shape at a fifth of its width, with seeded random weights."""
    trained = pipe.unet.config
    from_the_text = (
        "cross_attention_dim",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
    )
    shape: dict[str, Any] = {
        "sample_size": 32,
        "block_out_channels": (64, 128, 256),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (1, 2, 4),  # heads 64 wide, as in SDXL
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        **{key: trained[key] for key in from_the_text},
    }
    # The same weights in every process, and the caller's random state left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        unet = UNet2DConditionModel(**shape)
    pipe.register_modules(unet=unet.eval())
    pipe.default_sample_size = 32
    return pipe


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the loading bars and what transformers says about parts that are not used here."""
    loggers = (diffusers_logging, transformers_logging)
    shown = [logger.is_progress_bar_enabled() for logger in loggers]
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    for logger in loggers:
        logger.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        for logger, on in zip(loggers, shown, strict=True):
            if on:
                logger.enable_progress_bar()
