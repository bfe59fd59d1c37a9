"""A denoiser of FakeTensors, and the call that its pipeline makes: nothing is in memory."""

# diffusers exports its names lazily, which pyright does not see.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from hybridiff_compile.capture.call import DenoiserCall
from hybridiff_compile.errors import ConfigError
from hybridiff_compile.planning.architectures import Architecture

#: Tokens of the prompt: the padded length, or, for Qwen-Image, which does not pad, a long one.
CLIP_TOKENS, T5_TOKENS, QWEN_TOKENS = 77, 256, 128
_LTX_FPS = 25


def denoiser_and_call(architecture: Architecture, batch: int = 1) -> tuple[nn.Module, DenoiserCall]:
    """Make a denoiser and its pipeline's call, of FakeTensors on the CPU.

    Args:
        architecture: with the size of what to make.
        batch: B, of one branch.

    Raises:
        ConfigError: diffusers cannot make it of its config.
    """
    kind = getattr(diffusers, architecture.config["_class_name"])
    shape = {k: v for k, v in architecture.config.items() if not k.startswith("_")}
    if "sample_frames" in shape:  # CogVideoX: its table of positions is made for one size
        height, width = architecture.height // 8, architecture.width // 8
        shape |= {"sample_height": height, "sample_width": width}
        shape |= {"sample_frames": architecture.frames}
    before = torch.get_default_dtype()
    # Tables of positions are made by numpy, so some tensors are real.
    with FakeTensorMode(allow_non_fake_inputs=True):
        torch.set_default_dtype(architecture.kind.dtype)
        try:
            denoiser = kind(**shape).eval()
        except Exception as e:  # diffusers raises whatever its constructors come upon
            raise ConfigError(
                f"{kind.__name__} cannot be made of this config: {e}; compare it with one that "
                "diffusers wrote."
            ) from e
        finally:
            torch.set_default_dtype(before)
        _register(denoiser)
        arguments = _arguments(architecture, denoiser.config, 2 * batch)
    parameters = tuple(inspect.signature(denoiser.forward).parameters)
    return denoiser, DenoiserCall.of(parameters, (), {**arguments, "return_dict": False})


def _register(denoiser: nn.Module) -> None:
    """Make buffers of tensors that are plain attributes: export takes no FakeTensors there."""
    for module in denoiser.modules():
        plain = {name: v for name, v in vars(module).items() if isinstance(v, torch.Tensor)}
        for name, value in plain.items():
            delattr(module, name)
            module.register_buffer(name, value, persistent=False)


def _arguments(of: Architecture, c: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Of the call.

    Args:
        of: the architecture.
        c: its config, with the defaults of what it leaves out.
        rows: of a batched tensor, 2B.
    """

    def rand(*shape: int) -> torch.Tensor:
        return torch.empty(rows, *shape, dtype=of.kind.dtype)

    name, times = of.config["_class_name"], torch.empty(rows)
    height, width = of.height // 8, of.width // 8  # after the VAE
    if name == "UNet2DConditionModel":
        given: dict[str, Any] = {
            "sample": rand(c["in_channels"], height, width),
            "timestep": torch.empty((), dtype=torch.int64),
            "encoder_hidden_states": rand(CLIP_TOKENS, c["cross_attention_dim"]),
        }
        if c.get("addition_embed_type") == "text_time":
            pooled = c["projection_class_embeddings_input_dim"] - 6 * c["addition_time_embed_dim"]
            given["added_cond_kwargs"] = {"text_embeds": rand(pooled), "time_ids": rand(6)}
        return given
    if name == "SD3Transformer2DModel":
        return {
            "hidden_states": rand(c["in_channels"], height, width),
            "encoder_hidden_states": rand(CLIP_TOKENS + T5_TOKENS, c["joint_attention_dim"]),
            "pooled_projections": rand(c["pooled_projection_dim"]),
            "timestep": times,
        }
    if name == "PixArtTransformer2DModel":
        return {
            "hidden_states": rand(c["in_channels"], height, width),
            "encoder_hidden_states": rand(300, c["caption_channels"]),
            "encoder_attention_mask": rand(300),
            "timestep": times,
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }
    frames = (of.frames - 1) // of.kind.every + 1  # after the VAE
    if name == "WanTransformer3DModel":
        return {
            "hidden_states": rand(c["in_channels"], frames, height, width),
            "timestep": times,
            "encoder_hidden_states": rand(512, c["text_dim"]),
        }
    if name == "CogVideoXTransformer3DModel":
        return {
            "hidden_states": rand(frames, c["in_channels"], height, width),
            "encoder_hidden_states": rand(c["max_text_seq_length"], c["text_embed_dim"]),
            "timestep": times,
        }
    if name == "QwenImageTransformer2DModel":
        height, width = of.height // 16, of.width // 16  # packed two by two
        return {
            "hidden_states": rand(height * width, c["in_channels"]),
            "timestep": times,
            "encoder_hidden_states": rand(QWEN_TOKENS, c["joint_attention_dim"]),
            # Of one branch: what is no tensor is not sliced into branches.
            "img_shapes": [[(1, height, width)]] * (rows // 2),
        }
    assert name == "LTXVideoTransformer3DModel"
    height, width = of.height // 32, of.width // 32
    return {
        "hidden_states": rand(frames * height * width, c["in_channels"]),
        "encoder_hidden_states": rand(128, c["caption_channels"]),
        "encoder_attention_mask": torch.empty(rows, 128, dtype=torch.int64),
        "timestep": times,
        "num_frames": frames,
        "height": height,
        "width": width,
        "rope_interpolation_scale": (8 / _LTX_FPS, 32, 32),
    }
