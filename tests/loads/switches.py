"""What users load into a pipeline and switch on in it, on tiny random or embedded components."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    MultiAdapter,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
    T2IAdapter,
)
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.embeddings import (
    ImageProjection,
    IPAdapterTimeImageProjection,
)
from PIL import Image
from torch import nn

from tests import pipelines

STEPS = 2


def nothing(pipe: Any) -> None:
    """Switch nothing."""


@dataclass(frozen=True)
class Switch:
    """One thing that a user switches on.

    Attributes:
        name: of the test.
        on: switches it on.
        off: switches it off again; None where diffusers has no way back.
        call: further keywords of the pipeline's call while it is on.
        base: the pipeline that it is for: an embedded one, or a function that builds it.
        matters: whether it changes the picture.
    """

    name: str
    on: Callable[[Any], Any]
    off: Callable[[Any], Any] | None = None
    call: dict[str, Any] = field(default_factory=dict)
    base: str = "tiny-sdxl"
    matters: bool = True


def seeded(make: Callable[[], Any], seed: int = 5) -> Any:
    """What `make` returns with the random numbers of a seed; the caller's are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def noisy(module: nn.Module, std: float = 0.05, seed: int = 5) -> nn.Module:
    """The module with random values in place of the zeros that adapters begin with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * std)
    return module.eval()


def picture(size: int = 64) -> Image.Image:
    ramp = torch.arange(size).repeat(size, 1)
    return Image.fromarray(torch.stack([ramp, ramp.T, 63 - ramp], -1).byte().numpy() * 4)


def embeds(rows: int, *shape: int, seed: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([torch.zeros(rows // 2, *shape), torch.randn(rows // 2, *shape, generator=generator)])


# --- pipelines of other classes, from the same components ---


def control_net(pipe: Any, nets: int = 1) -> Any:
    def one(seed: int) -> nn.Module:
        return noisy(ControlNetModel.from_unet(pipe.unet), seed=seed)

    nets_ = [one(s) for s in range(nets)]
    return StableDiffusionXLControlNetPipeline(
        **pipe.components, controlnet=nets_ if nets > 1 else nets_[0]
    )


def t2i_adapter(pipe: Any) -> Any:
    adapter = seeded(
        lambda: T2IAdapter(
            in_channels=3,
            channels=[48, 80, 112],
            num_res_blocks=1,
            downscale_factor=4,
            adapter_type="full_adapter",
        )
    )
    return StableDiffusionXLAdapterPipeline(**pipe.components, adapter=adapter.eval())


# --- IP-Adapters ---


def ip_adapter_weights(unet: Any, seed: int = 5, tokens: int = 4) -> dict[str, Any]:
    width, found = unet.config.cross_attention_dim, {}
    names = [n for n in unet.attn_processors]

    def hidden(name: str) -> int:
        widths = unet.config.block_out_channels
        if name.startswith("mid_block"):
            return widths[-1]
        kind, index = name.split(".")[:2]
        return (widths if kind == "down_blocks" else widths[::-1])[int(index)]

    key = 1
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        if name.endswith("attn1.processor"):
            continue
        for what in ("to_k_ip", "to_v_ip"):
            found[f"{key}.{what}.weight"] = torch.randn(hidden(name), width, generator=generator) / width**0.5
        key += 2
    projection = seeded(lambda: ImageProjection(cross_attention_dim=width, image_embed_dim=width, num_image_text_embeds=tokens), seed)
    state = projection.state_dict()
    proj = {
        "proj.weight": state["image_embeds.weight"],
        "proj.bias": state["image_embeds.bias"],
        "norm.weight": state["norm.weight"],
        "norm.bias": state["norm.bias"],
    }
    return {"image_proj": proj, "ip_adapter": found}


def load_ip(pipe: Any, count: int = 1) -> None:
    weights = [ip_adapter_weights(pipe.unet, seed) for seed in range(count)]
    pipe.load_ip_adapter(weights if count > 1 else weights[0], subfolder=[""] * count if count > 1 else "", weight_name=[""] * count if count > 1 else "", image_encoder_folder=None)


def load_ip_sd3(pipe: Any) -> None:
    transformer = pipe.transformer
    inner = transformer.config.attention_head_dim * transformer.config.num_attention_heads
    emb = 64
    ip = {}
    from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0

    for index in range(len(transformer.attn_processors)):
        processor = seeded(
            lambda: SD3IPAdapterJointAttnProcessor2_0(
                hidden_size=inner, ip_hidden_states_dim=inner, head_dim=transformer.config.attention_head_dim, timesteps_emb_dim=emb
            ),
            index,
        )
        ip |= {f"{index}.{k}": v for k, v in processor.state_dict().items()}
    projection = seeded(
        lambda: IPAdapterTimeImageProjection(
            embed_dim=32, output_dim=inner, hidden_dim=emb, heads=1, num_queries=4, timestep_in_dim=32
        )
    )
    pipe.load_ip_adapter({"image_proj": projection.state_dict(), "ip_adapter": ip}, weight_name="", subfolder="", image_encoder_folder=None)
