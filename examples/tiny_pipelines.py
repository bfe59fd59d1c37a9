"""The parts of `train_tiny.py`: the two pipelines before training, and what they minimize."""

# diffusers exports its names lazily, which pyright does not see, and annotates tuples of any length
# as tuple[int] and what may be None as never None.
# pyright: reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from hybridiff_compile.bench import scenes

TEXT_LENGTH = 16
TEXT_WIDTH = 64
DROPOUT = 0.1  # the share of captions replaced by the pipeline's null
LATENT = scenes.SIZE // 4


def build_vae() -> AutoencoderKL:
    """An untrained autoencoder from 64 x 64 pictures to 16 x 16 latents of 4 channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 16, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=scenes.SIZE,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer in which every word of the captions is one token."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in scenes.words():
        # A later merge never disturbs an earlier word: that one is whole before its turn comes.
        while len(pieces := split(word, merges)) > 1:
            merges.append((pieces[0], pieces[1]))
            tokens.append(pieces[0] + pieces[1])
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TEXT_LENGTH)


def split(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """The pieces of a word after byte-pair merging."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    for pair in merges:
        at = 0
        while at < len(pieces) - 1:
            if (pieces[at], pieces[at + 1]) == pair:
                pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
            at += 1
    return pieces


def text_config(words: CLIPTokenizer) -> CLIPTextConfig:
    """Three layers, so that the last but one, which the pipelines read, has seen the sentence."""
    return CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )


def scale_embeddings(encoder: nn.Module) -> None:
    """CLIP's 0.02 is for 512 channels and days of training; start with signals of size one."""
    for module in encoder.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.7)


def build_sdxl(vae: AutoencoderKL) -> StableDiffusionXLPipeline:
    """An untrained tiny-sdxl."""
    words = tokenizer()
    unet = UNet2DConditionModel(
        sample_size=LATENT,
        block_out_channels=(48, 80, 112),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=1,
        attention_head_dim=(3, 5, 7),
        norm_num_groups=16,
        cross_attention_dim=2 * TEXT_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=6 * 16 + TEXT_WIDTH,
    )
    pipe = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text_config(words)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(words)),
        tokenizer=words,
        tokenizer_2=tokenizer(),
        unet=unet,
        # The linear schedule ends in (almost) pure noise also for so few pixels.
        scheduler=DDIMScheduler(
            beta_start=1e-4,
            beta_end=0.02,
            beta_schedule="linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    scale_embeddings(pipe.text_encoder)
    scale_embeddings(pipe.text_encoder_2)
    return pipe


def build_sd3(vae: AutoencoderKL) -> StableDiffusion3Pipeline:
    """An untrained tiny-sd3."""
    words = tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=LATENT,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=8,
        attention_head_dim=24,
        num_attention_heads=4,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=96,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=32,
    )
    # Every block starts as the identity (as in DiT): far faster at this size.
    for name, module in transformer.named_modules():
        if name == "proj_out" or name.endswith(("norm1.linear", "norm1_context.linear")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=CLIPTextModelWithProjection(text_config(words)),
        tokenizer=words,
        text_encoder_2=CLIPTextModelWithProjection(text_config(words)),
        tokenizer_2=tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    scale_embeddings(pipe.text_encoder)
    scale_embeddings(pipe.text_encoder_2)
    return pipe


def loss_sdxl(pipe: StableDiffusionXLPipeline, captions: list[str], latents: Tensor) -> Tensor:
    """Noise prediction; dropped captions are zeros, the pipeline's null."""
    count = len(captions)
    embeds, _, pooled, _ = pipe.encode_prompt(captions, do_classifier_free_guidance=False)
    keep = (torch.rand(count) >= DROPOUT).float()
    embeds, pooled = embeds * keep[:, None, None], pooled * keep[:, None]
    latents = latents * pipe.vae.config["scaling_factor"]
    noise = torch.randn_like(latents)
    alphas = pipe.scheduler.alphas_cumprod
    times = torch.randint(len(alphas), (count,))
    size = float(scenes.SIZE)
    ids = torch.tensor([size, size, 0, 0, size, size]).expand(count, 6)
    predicted = pipe.unet(
        pipe.scheduler.add_noise(latents, noise, times),
        times,
        embeds,
        added_cond_kwargs={"text_embeds": pooled, "time_ids": ids},
        return_dict=False,
    )[0]
    ratio = alphas[times] / (1 - alphas[times])
    # Nearly equal weight for errors of the picture: layout and colours, decided in heavy noise, are
    # a vanishing part of the plain noise error.
    weight = 1 / (ratio + 0.005)
    return ((predicted - noise).square().mean((1, 2, 3)) * weight).mean()


def loss_sd3(pipe: StableDiffusion3Pipeline, captions: list[str], latents: Tensor) -> Tensor:
    """Flow matching; dropped captions are the encoded empty text, the pipeline's null."""
    count = len(captions)
    dropped = (torch.rand(count) < DROPOUT).tolist()
    texts = ["" if drop else caption for caption, drop in zip(captions, dropped, strict=True)]
    embeds, _, pooled, _ = pipe.encode_prompt(
        texts, None, None, do_classifier_free_guidance=False, max_sequence_length=TEXT_LENGTH
    )
    config = pipe.vae.config
    latents = (latents - config["shift_factor"]) * config["scaling_factor"]
    noise = torch.randn_like(latents)
    # Half logit-normal, half uniform: the layout is decided at the noisy end, which needs practice.
    sigma = torch.where(torch.rand(count) < 0.5, torch.randn(count).sigmoid(), torch.rand(count))
    mixed = torch.lerp(latents, noise, sigma[:, None, None, None])
    velocity = pipe.transformer(mixed, embeds, pooled, sigma * 1000, return_dict=False)[0]
    return (velocity - (noise - latents)).square().mean()
