"""Small pipelines, and what users load into them and switch on in them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ControlNetModel, T2IAdapter
from diffusers.models.attention_processor import (
    AttnProcessor,
    SD3IPAdapterJointAttnProcessor2_0,
)
from diffusers.models.embeddings import ImageProjection, IPAdapterTimeImageProjection
from PIL import Image
from torch import nn

from tests import pipelines
from tests.pipelines import TEXT, WIDTHS, seeded
from tests.reference import branches_apart

STEPS = 3


def sdxl() -> Any:
    return pipelines.load("small-sdxl")


def sd3() -> Any:
    return pipelines.load("small-sd3")


def denoiser(pipe: Any) -> Any:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def make(pipe: Any, *, seed: Any = 0, **call: Any) -> torch.Tensor:
    """The latents of a short call, or its picture with another `output_type`."""
    plain = getattr(pipe, "pipe", pipe)
    name = "small-sdxl" if hasattr(plain, "unet") else "small-sd3"
    short = {"num_inference_steps": STEPS, **call}
    return torch.as_tensor(pipelines.latents(pipe, name, seed, **short))


def apart(pipe: Any, *, seed: Any = 0, **call: Any) -> torch.Tensor:
    """The same of a pipeline that is not optimized, its branches one after the other."""
    with branches_apart(denoiser(pipe)):
        return make(pipe, seed=seed, **call)


def noisy(module: nn.Module, seed: int) -> nn.Module:
    """The module with random values on top of the zeros that adapters begin with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module.eval()


def picture() -> Image.Image:
    ramp = torch.arange(64).repeat(64, 1)
    return Image.fromarray(torch.stack([ramp, ramp.T, 63 - ramp], -1).byte().numpy() * 4)


def embeds(*shape: int, seed: int = 7) -> torch.Tensor:
    """Embeddings of a picture prompt, zeros for the unconditional row: [2, ...]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([torch.zeros(1, *shape), torch.randn(1, *shape, generator=generator)])


def control_net(pipe: Any, seed: int = 0) -> Any:
    def build() -> nn.Module:
        return ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 16, 32))

    return noisy(seeded(build), seed)


def t2i_adapter() -> Any:
    def build() -> nn.Module:
        return T2IAdapter(3, list(WIDTHS), 1, downscale_factor=8, adapter_type="full_adapter_xl")

    return seeded(build).eval()


def load_ip(pipe: Any, count: int = 1) -> None:
    """Load IP-Adapters of random weights, as for SD1.5 and SDXL."""
    found = [_ip_weights(pipe.unet, seed) for seed in range(count)]
    pipe.load_ip_adapter(found, [""] * count, [""] * count, image_encoder_folder=None)


def _ip_weights(unet: Any, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    cross = [n for n in unet.attn_processors if n.endswith("attn2.processor")]
    attention = {  # every second number is a self-attention's
        f"{2 * i + 1}.{what}.weight": torch.randn(WIDTHS[-1], TEXT, generator=generator) / 8
        for i, _ in enumerate(cross)
        for what in ("to_k_ip", "to_v_ip")
    }
    projection = seeded(lambda: ImageProjection(TEXT, TEXT, 4), seed).state_dict()
    renamed = {k.replace("image_embeds", "proj"): v for k, v in projection.items()}
    return {"image_proj": renamed, "ip_adapter": attention}


def load_ip_sd3(pipe: Any) -> None:
    """Load an IP-Adapter of random weights, as for SD3."""
    shape = pipe.transformer.config
    inner, width = shape.attention_head_dim * shape.num_attention_heads, 64
    attention = {}
    for index in range(shape.num_layers):

        def build() -> nn.Module:
            return SD3IPAdapterJointAttnProcessor2_0(inner, inner, shape.attention_head_dim, width)

        state = seeded(build, index).state_dict()
        attention |= {f"{index}.{name}": value for name, value in state.items()}

    def project() -> nn.Module:
        return IPAdapterTimeImageProjection(
            32, inner, width, heads=1, num_queries=4, timestep_in_dim=32
        )

    weights = {"image_proj": seeded(project).state_dict(), "ip_adapter": attention}
    pipe.load_ip_adapter(weights, "", "", image_encoder_folder=None)


class Weakened:
    """An attention processor of a user's own, with a setting in it."""

    def __init__(self, strength: float) -> None:
        self.settings = {"strength": strength}
        self.usual = AttnProcessor()

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.usual(attn, hidden_states, *args, **kwargs) * self.settings["strength"]
