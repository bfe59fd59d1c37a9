"""Full-size denoisers with random weights, and clocks, for `gpu_check.py`; no downloads."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from statistics import median
from typing import Any

import diffusers
import torch
from torch import nn

from hybridiff_compile.capture.call import DenoiserCall
from hybridiff_compile.planning import architectures, clock

NAMES = ("sdxl", "sd3-medium")

#: What a rehearsal on a processor changes: the same shapes of graph, little work.
_SMALL: dict[str, dict[str, Any]] = {
    "sdxl": {
        "sample_size": 16,
        "block_out_channels": (32, 64, 64),
        "attention_head_dim": (2, 4, 4),
        "transformer_layers_per_block": (1, 1, 2),
    },
    "sd3-medium": {
        "sample_size": 16,
        "num_layers": 4,
        "num_attention_heads": 2,
        "caption_projection_dim": 128,
    },
}


def build(name: str, device: torch.device, dtype: torch.dtype, *, small: bool) -> nn.Module:
    """One of NAMES with seeded random weights, made on the device."""
    config = architectures.named(name).config
    kind = getattr(diffusers, config["_class_name"])
    shape = {key: value for key, value in config.items() if not key.startswith("_")}
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with device:
            return kind(**{**shape, **(_SMALL[name] if small else {})}).eval().to(device, dtype)
    finally:
        torch.set_default_dtype(before)


def call_of(
    name: str, denoiser: Any, device: torch.device, dtype: torch.dtype
) -> tuple[DenoiserCall, Callable[[], Any]]:
    """The call `[uncond, cond]` that the pipeline makes at its native size, on random values.

    Returns:
        The call, and the denoiser's own answer to it in one batch.
    """
    size = denoiser.config.sample_size
    generator = torch.Generator(device).manual_seed(1)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    noisy = rand(1, denoiser.config.in_channels, size, size).repeat(2, 1, 1, 1)
    if name == "sdxl":
        ids = torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]], device=device, dtype=dtype)
        added = {"text_embeds": rand(2, 1280), "time_ids": ids.repeat(2, 1)}
        args: tuple[Any, ...] = (noisy, torch.tensor(500, device=device))
        kwargs: dict[str, Any] = {"encoder_hidden_states": rand(2, 77, 2048)}
        kwargs["added_cond_kwargs"] = added
    else:
        args, steps = (), torch.full((2,), 500.0, device=device)
        text, pooled = rand(2, 77 + 256, 4096), rand(2, 2048)
        kwargs = {"hidden_states": noisy, "timestep": steps}
        kwargs.update(encoder_hidden_states=text, pooled_projections=pooled)
    kwargs["return_dict"] = False
    parameters = tuple(inspect.signature(denoiser.forward).parameters)
    return DenoiserCall.of(parameters, args, kwargs), lambda: denoiser(*args, **kwargs)


def compile_blocks(denoiser: nn.Module) -> None:
    """Compile a denoiser's repeated blocks by torch.compile, as diffusers does for some."""
    for module in denoiser.modules():
        if type(module).__name__ in ("BasicTransformerBlock", "JointTransformerBlock"):
            module.compile(fullgraph=True, dynamic=False)


def median_ms(run: Callable[[], Any], device: torch.device, rounds: int) -> float:
    """Median milliseconds of a call, after some that warm up."""
    return 1e3 * median(clock.samples([run], device, rounds)[0])


def graphed_ms(run: Callable[[], Any], device: torch.device, rounds: int) -> float:
    """As `median_ms`, replayed from a CUDA graph: what the kernels take without their launches."""
    if device.type != "cuda":  # a rehearsal
        return median_ms(run, device, rounds)
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return median_ms(graph.replay, device, rounds)
