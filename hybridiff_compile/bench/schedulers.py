"""The samplers that a sweep can give a pipeline in place of its own."""

from __future__ import annotations

from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from hybridiff_compile.errors import ConfigError

_CLASSES: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpm++2m": DPMSolverMultistepScheduler,
    "flow-euler": FlowMatchEulerDiscreteScheduler,
}
NAMES = tuple(_CLASSES)
#: For a denoiser trained by flow matching, and for any other.
_FOR_FLOW, _FOR_NOISE = ("dpm++2m", "flow-euler"), ("ddim", "euler", "dpm++2m")


def build(name: str, current: Any, model: str) -> Any:
    """A sampler set as a pipeline's own one is.

    Args:
        name: one of NAMES.
        current: the pipeline's own.
        model: its name, for the error.

    Raises:
        ConfigError: the denoiser was trained for another kind of sampler.
    """
    config = current.config
    is_flow = isinstance(current, FlowMatchEulerDiscreteScheduler) or bool(
        config.get("use_flow_sigmas")
    )
    fitting = _FOR_FLOW if is_flow else _FOR_NOISE
    if name not in fitting:
        kind = "flow matching" if is_flow else "noise"
        raise ConfigError(
            f"{model} predicts for {kind}, which {name} does not sample; choose from "
            f"{', '.join(fitting)}, or leave that model out."
        )
    extra: dict[str, Any] = {}
    if is_flow and name == "dpm++2m":
        extra = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        extra["flow_shift"] = config.get("shift", config.get("flow_shift", 1.0))
    return _CLASSES[name].from_config(config, **extra)
