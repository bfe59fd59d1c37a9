"""Tiny pipelines of blocks on random components, and the keywords of a call of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    ErnieImageTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    LTXVideoTransformer3DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
    ZImageTransformer2DModel,
)
from diffusers.modular_pipelines.ernie_image import modular_blocks_ernie_image as ernie_blocks
from diffusers.modular_pipelines.flux import modular_blocks_flux as flux_blocks
from diffusers.modular_pipelines.flux2 import modular_blocks_flux2_klein_base as flux2_blocks
from diffusers.modular_pipelines.ltx import modular_blocks_ltx as ltx_blocks
from diffusers.modular_pipelines.qwenimage import modular_blocks_qwenimage as qwen_blocks
from diffusers.modular_pipelines.stable_diffusion_3 import (
    modular_blocks_stable_diffusion_3 as sd3_blocks,
)
from diffusers.modular_pipelines.stable_diffusion_xl import (
    modular_blocks_stable_diffusion_xl as sdxl_blocks,
)
from diffusers.modular_pipelines.wan import modular_blocks_wan as wan_blocks
from diffusers.modular_pipelines.wan import modular_blocks_wan22 as wan22_blocks
from diffusers.modular_pipelines.z_image import modular_blocks_z_image as z_image_blocks

from tests import pipelines

STEPS = 4
#: A pipeline, and the keywords of a call that gives latents.
Built = tuple[Any, dict[str, Any]]

#: Of the random text of a branch.
_LENGTH, _WIDTH = 6, 16


def sdxl(guider: Any = None) -> Built:
    """The blocks of SDXL on the parts of small-sdxl, from the prompt to the picture.

    Args:
        guider: None is the blocks' own, classifier-free guidance at a scale of 7.5.
    """
    pipe = sdxl_blocks.StableDiffusionXLAutoBlocks().init_pipeline()
    pipe.update_components(**sdxl_parts())
    if guider is not None:
        pipe.update_components(guider=guider)
    return _silent(pipe), {"prompt": pipelines.PROMPT, "height": 64, "width": 64}


def sdxl_parts() -> dict[str, Any]:
    """What those blocks are run on, with a UNet of seeded random weights."""
    whole = pipelines.load("small-sdxl")
    names = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae", "scheduler")
    return {**{name: getattr(whole, name) for name in names}, "unet": sdxl_unet()}


def sdxl_unet(seed: int = 5) -> Any:
    return pipelines.seeded(lambda: pipelines.awake(UNet2DConditionModel(**pipelines.UNET)), seed)


def sd3() -> Built:
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=_WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=_WIDTH,
        pos_embed_max_size=16,
    )
    pooled = {"pooled_prompt_embeds": flat(3), "negative_pooled_prompt_embeds": flat(4)}
    blocks = sd3_blocks.StableDiffusion3T2ICoreDenoiseStep()
    return _flow(blocks, transformer), {**texts(), **pooled, "height": 64, "width": 64}


def flux() -> Built:
    """It has no guider: one call a step."""
    transformer = FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_WIDTH,
        pooled_projection_dim=_WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    call = {"prompt_embeds": text(1), "pooled_prompt_embeds": flat(3)}
    return _flow(flux_blocks.FluxCoreDenoiseStep(), transformer), {
        **call,
        "height": 64,
        "width": 64,
    }


def flux2() -> Built:
    transformer = Flux2Transformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_WIDTH,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    blocks = flux2_blocks.Flux2KleinBaseCoreDenoiseStep()
    return _flow(blocks, transformer), {**texts(), "height": 64, "width": 64}


def qwen() -> Built:
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_WIDTH,
        axes_dims_rope=(8, 4, 4),
    )
    masks = {f"{name}_mask": torch.ones(1, _LENGTH, dtype=torch.bool) for name in texts()}
    blocks = qwen_blocks.QwenImageCoreDenoiseStep()
    return _flow(blocks, transformer), {**texts(), **masks, "height": 64, "width": 64}


def wan() -> Built:
    call = {**texts(), "height": 32, "width": 32, "num_frames": 5}
    return _flow(wan_blocks.WanCoreDenoiseStep(), _wan()), call


def wan22() -> Built:
    """It has two denoisers, each for a part of the steps, with a guider of its own each."""
    call = {**texts(), "height": 32, "width": 32, "num_frames": 5}
    pipe = _flow(wan22_blocks.Wan22CoreDenoiseStep(), _wan())
    pipe.update_components(transformer_2=_random(_wan(), seed=8))
    return pipe, call


def z_image() -> Built:
    """Its pictures and texts are lists of tensors; it guides once its guider is enabled."""
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=_WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[64, 16, 16],
    )
    pipe = _flow(z_image_blocks.ZImageCoreDenoiseStep(), transformer)
    pipe.guider.enable()
    call = {name: [embeds[0]] for name, embeds in texts().items()}
    return pipe, {**call, "height": 64, "width": 64}


def ltx() -> Built:
    """It names a cache context for each branch."""
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=_WIDTH,
    )
    names = ("prompt_attention_mask", "negative_prompt_attention_mask")
    masks = {name: torch.ones(1, _LENGTH, dtype=torch.bool) for name in names}
    call = {**texts(), **masks, "height": 128, "width": 128, "num_frames": 9}
    return _flow(ltx_blocks.LTXCoreDenoiseStep(), transformer), call


def ernie() -> Built:
    transformer = ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=32,
        in_channels=4,
        out_channels=4,
        text_in_dim=_WIDTH,
        rope_axes_dim=(8, 4, 4),
    )
    pipe = _flow(ernie_blocks.ErnieImageCoreDenoiseStep(), transformer)
    call = {name: [embeds[0]] for name, embeds in texts().items()}
    return pipe, {**call, "height": 128, "width": 128}


#: Those that call their denoiser once for each branch.
GUIDED: dict[str, Callable[[], Built]] = {
    "sdxl": sdxl,
    "sd3": sd3,
    "flux2": flux2,
    "qwen": qwen,
    "wan": wan,
    "ltx": ltx,
    "ernie": ernie,
    "z_image": z_image,
}
ALL: dict[str, Callable[[], Built]] = {**GUIDED, "flux": flux, "wan22": wan22}


def make(pipe: Any, call: dict[str, Any], seed: int = 0, **more: Any) -> Any:
    """What a call returns, by default the final latents."""
    generator = torch.Generator().manual_seed(seed)
    asked = {"num_inference_steps": STEPS, "output": "latents", "generator": generator}
    if "prompt" in call:
        asked["output_type"] = "latent"
    return pipe(**{**asked, **call, **more})


def text(seed: int, rows: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, _LENGTH, _WIDTH, generator=generator)


def flat(seed: int) -> torch.Tensor:
    return text(seed)[:, 0]


def texts() -> dict[str, torch.Tensor]:
    return {"prompt_embeds": text(1), "negative_prompt_embeds": text(2)}


def _wan() -> Any:
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=_WIDTH,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )


def _flow(blocks: Any, transformer: Any) -> Any:
    """A pipeline of blocks, with a transformer and a sampler of flow matching."""
    pipe = blocks.init_pipeline()
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipe.update_components(transformer=_random(transformer), scheduler=scheduler)
    return _silent(pipe)


def _random(module: torch.nn.Module, seed: int = 7) -> Any:
    """Seeded weights in the place of those that it was made with, none of which is zero."""

    def filled() -> torch.nn.Module:
        for parameter in module.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 1
            at = 1.0 if parameter.ndim == 1 and (parameter == 1).all() else 0.0
            torch.nn.init.normal_(parameter, at, 0.1 if parameter.ndim == 1 else fan**-0.5)
        return module.eval()

    return pipelines.seeded(filled, seed)


def bars(pipe: Any) -> list[Any]:
    """The blocks that show how far they are."""
    found = [pipe._blocks]
    for block in found:
        found += block.sub_blocks.values()
    return [block for block in found if hasattr(block, "progress_bar")]


def _silent(pipe: Any) -> Any:
    for block in bars(pipe):
        block.set_progress_bar_config(disable=True)
    return pipe
