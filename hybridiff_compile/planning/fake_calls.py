"""A denoiser of FakeTensors, and the call that its pipeline makes: nothing is in memory."""

# diffusers exports its names lazily, which pyright does not see.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from hybridiff_compile.capture.call import DenoiserCall
from hybridiff_compile.capture.trace import Captured, capture
from hybridiff_compile.errors import ConfigError
from hybridiff_compile.planning.architectures import Architecture

#: Tokens of the prompt: the padded length, or, for Qwen-Image, which does not pad, a long one.
CLIP_TOKENS, T5_TOKENS, QWEN_TOKENS = 77, 256, 128
_LTX_FPS = 25


@dataclass(frozen=True)
class _Maker:
    """Makes the arguments of a call.

    Attributes:
        config: the architecture's, with the defaults of what it leaves out.
        rows: of a batched tensor, 2B.
    """

    architecture: Architecture
    config: Mapping[str, Any]
    rows: int

    def rand(self, *shape: int) -> torch.Tensor:
        """A batched tensor of the model's dtype."""
        return torch.empty(self.rows, *shape, dtype=self.architecture.kind.dtype)

    def latents(self, scale: int) -> tuple[int, int]:
        """Height and width after the VAE."""
        return self.architecture.height // scale, self.architecture.width // scale

    def times(self) -> torch.Tensor:
        """One time a row."""
        return torch.empty(self.rows)


_Arguments = dict[str, Any]


def traced(architecture: Architecture, batch: int = 1) -> Captured:
    """Trace an architecture's denoiser from the call that its pipeline makes.

    Args:
        architecture: with the size of what to make.
        batch: B, of one branch.

    Returns:
        The captured step; its weights and values are FakeTensors on the CPU.

    Raises:
        CaptureError: it cannot be exported.
    """
    denoiser, call = denoiser_and_call(architecture, batch)
    return capture(denoiser, call, None)


def denoiser_and_call(architecture: Architecture, batch: int = 1) -> tuple[nn.Module, DenoiserCall]:
    """Make a denoiser and its pipeline's call, of FakeTensors; arguments as for `traced`."""
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
        make = _Maker(architecture, dict(denoiser.config), 2 * batch)
        arguments = _CALLS[architecture.config["_class_name"]](make)
    parameters = tuple(inspect.signature(denoiser.forward).parameters)
    return denoiser, DenoiserCall.of(parameters, (), {**arguments, "return_dict": False})


def _register(denoiser: nn.Module) -> None:
    """Make buffers of tensors that are plain attributes: export takes no FakeTensors there."""
    for module in denoiser.modules():
        plain = {name: v for name, v in vars(module).items() if isinstance(v, torch.Tensor)}
        for name, value in plain.items():
            delattr(module, name)
            module.register_buffer(name, value, persistent=False)


def _unet(make: _Maker) -> _Arguments:
    config = make.config
    given = {
        "sample": make.rand(config["in_channels"], *make.latents(8)),
        "timestep": torch.empty((), dtype=torch.int64),
        "encoder_hidden_states": make.rand(CLIP_TOKENS, config["cross_attention_dim"]),
    }
    if config.get("addition_embed_type") == "text_time":
        times = 6 * config["addition_time_embed_dim"]
        pooled = config["projection_class_embeddings_input_dim"] - times
        added = {"text_embeds": make.rand(pooled), "time_ids": make.rand(6)}
        given["added_cond_kwargs"] = added  # pyright: ignore[reportArgumentType]
    return given


def _sd3(make: _Maker) -> _Arguments:
    config = make.config
    return {
        "hidden_states": make.rand(config["in_channels"], *make.latents(8)),
        "encoder_hidden_states": make.rand(CLIP_TOKENS + T5_TOKENS, config["joint_attention_dim"]),
        "pooled_projections": make.rand(config["pooled_projection_dim"]),
        "timestep": make.times(),
    }


def _pixart(make: _Maker) -> _Arguments:
    config = make.config
    return {
        "hidden_states": make.rand(config["in_channels"], *make.latents(8)),
        "encoder_hidden_states": make.rand(300, config["caption_channels"]),
        "encoder_attention_mask": make.rand(300),
        "timestep": make.times(),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def _wan(make: _Maker) -> _Arguments:
    config, frames = make.config, (make.architecture.frames - 1) // 4 + 1
    return {
        "hidden_states": make.rand(config["in_channels"], frames, *make.latents(8)),
        "timestep": make.times(),
        "encoder_hidden_states": make.rand(512, config["text_dim"]),
    }


def _cogvideox(make: _Maker) -> _Arguments:
    config, frames = make.config, (make.architecture.frames - 1) // 4 + 1
    text = (config["max_text_seq_length"], config["text_embed_dim"])
    return {
        "hidden_states": make.rand(frames, config["in_channels"], *make.latents(8)),
        "encoder_hidden_states": make.rand(*text),
        "timestep": make.times(),
    }


def _qwen(make: _Maker) -> _Arguments:
    height, width = make.latents(16)  # packed two by two
    config = make.config
    return {
        "hidden_states": make.rand(height * width, config["in_channels"]),
        "timestep": make.times(),
        "encoder_hidden_states": make.rand(QWEN_TOKENS, config["joint_attention_dim"]),
        # Of one branch: what is no tensor is not sliced into branches.
        "img_shapes": [[(1, height, width)]] * (make.rows // 2),
    }


def _ltx(make: _Maker) -> _Arguments:
    config, frames = make.config, (make.architecture.frames - 1) // 8 + 1
    height, width = make.latents(32)
    return {
        "hidden_states": make.rand(frames * height * width, config["in_channels"]),
        "encoder_hidden_states": make.rand(128, config["caption_channels"]),
        "encoder_attention_mask": torch.empty(make.rows, 128, dtype=torch.int64),
        "timestep": make.times(),
        "num_frames": frames,
        "height": height,
        "width": width,
        "rope_interpolation_scale": (8 / _LTX_FPS, 32, 32),
    }


_CALLS: Mapping[str, Callable[[_Maker], _Arguments]] = {
    "UNet2DConditionModel": _unet,
    "SD3Transformer2DModel": _sd3,
    "PixArtTransformer2DModel": _pixart,
    "WanTransformer3DModel": _wan,
    "CogVideoXTransformer3DModel": _cogvideox,
    "QwenImageTransformer2DModel": _qwen,
    "LTXVideoTransformer3DModel": _ltx,
}
