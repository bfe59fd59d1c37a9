"""The embedded pipelines as the end-to-end tests use them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from hybridiff_compile.bench import models

PROMPT = "a red circle left of a blue square on a dark green background"
OTHER_PROMPT = "a blue square above a red circle on a dark green background"
STEPS = 12

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpm++2m": DPMSolverMultistepScheduler,
    "flow-euler": FlowMatchEulerDiscreteScheduler,
}


def load(name: str) -> Any:
    """A pipeline of its own, without a progress bar."""
    pipe = models.load(name)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def set_scheduler(pipe: Any, name: str, scheduler: str) -> None:
    """Give the pipeline another sampler, set for flow matching where the model needs it."""
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    extra = flow if (name, scheduler) == ("tiny-sd3", "dpm++2m") else {}
    pipe.scheduler = SCHEDULERS[scheduler].from_config(pipe.scheduler.config, **extra)


def settings(name: str, seed: int = 0, **call: Any) -> dict[str, Any]:
    """Keywords of a call: the model's own, a prompt, a seed, latents as the result."""
    defaults = {"num_inference_steps": STEPS, "output_type": "latent"}
    if "prompt_embeds" not in call:
        defaults["prompt"] = PROMPT
    generator = torch.Generator().manual_seed(seed)
    return {**models.call_settings(name), **defaults, "generator": generator, **call}


def latents(pipe: Any, name: str, seed: int = 0, **call: Any) -> torch.Tensor:
    """The final latents of a call."""
    return pipe(**settings(name, seed, **call)).images


def shallow() -> Any:
    """tiny-sd3 with a transformer of four random blocks: all that compiling needs, in seconds."""
    pipe = load("tiny-sd3")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        shape = {**pipe.transformer.config, "num_layers": 4}
        pipe.register_modules(transformer=type(pipe.transformer).from_config(shape).eval())
    return pipe
