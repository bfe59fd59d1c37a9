"""The embedded pipelines as the end-to-end tests use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
)

from hybridiff_compile.bench import models

PROMPT = "a red circle left of a blue square on a dark green background"
OTHER_PROMPT = "a blue square above a red circle on a dark green background"
STEPS = 12

#: The embedded pipelines with a random denoiser of two blocks, which is captured in half the time.
SMALL = {"small-sdxl": "tiny-sdxl", "small-sd3": "tiny-sd3"}
WIDTHS = (16, 32)
TEXT = 128  # width of the embedded pipelines' text
UNET: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": WIDTHS,
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
    "norm_num_groups": 8,
    "use_linear_projection": True,
    "cross_attention_dim": TEXT,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 16,
    "projection_class_embeddings_input_dim": 160,
}

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpm++2m": DPMSolverMultistepScheduler,
    "flow-euler": FlowMatchEulerDiscreteScheduler,
}


def load(name: str) -> Any:
    """A pipeline of its own, without a progress bar: an embedded one, or one of SMALL."""
    pipe = models.load(SMALL.get(name, name))
    pipe.set_progress_bar_config(disable=True)
    if name == "small-sd3":
        put_transformer(pipe, blocks=2)
    elif name == "small-sdxl":
        pipe.register_modules(unet=seeded(lambda: UNet2DConditionModel(**UNET)).eval())
    return pipe


def set_scheduler(pipe: Any, name: str, scheduler: str) -> None:
    """Give the pipeline another sampler, set for flow matching where the model needs it."""
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    extra = flow if name.endswith("sd3") and scheduler == "dpm++2m" else {}
    pipe.scheduler = SCHEDULERS[scheduler].from_config(pipe.scheduler.config, **extra)


def settings(name: str, seed: int = 0, **call: Any) -> dict[str, Any]:
    """Keywords of a call: the model's own, a prompt, a seed, latents as the result."""
    defaults = {"num_inference_steps": STEPS, "output_type": "latent"}
    if "prompt_embeds" not in call:
        defaults["prompt"] = PROMPT
    generator = torch.Generator().manual_seed(seed)
    return {
        **models.call_settings(SMALL.get(name, name)),
        **defaults,
        "generator": generator,
        **call,
    }


def latents(pipe: Any, name: str, seed: int = 0, **call: Any) -> torch.Tensor:
    """The final latents of a call."""
    return pipe(**settings(name, seed, **call)).images


def slow(*names: str) -> list[Any]:
    """Cases that `make test` leaves out."""
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def shallow(blocks: int = 2) -> Any:
    """tiny-sd3 with a transformer of few random blocks, one a rank: it is compiled in seconds."""
    pipe = load("tiny-sd3")
    put_transformer(pipe, blocks, seed=3)
    return pipe


def put_transformer(pipe: Any, blocks: int, seed: int = 5) -> None:
    """Give an SD3 pipeline a random transformer of so many blocks."""
    shape = {**pipe.transformer.config, "num_layers": blocks}
    transformer = seeded(lambda: type(pipe.transformer).from_config(shape), seed)
    pipe.register_modules(transformer=transformer.eval())


def awake(module: torch.nn.Module) -> Any:
    """Give what is initialised to zeros some weights, so that the prediction depends on all."""
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return module.eval()


def seeded(build: Callable[[], Any], seed: int = 5) -> Any:
    """What `build` makes of a seed's random numbers; the caller's own stay as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
