"""What is switched on in an optimized pipeline, and before: exact keeps the bits of the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

import hybridiff_compile
from tests import pipelines
from tests.loads import switches
from tests.loads.switches import apart, embeds, make

PROMPT = {"ip_adapter_image_embeds": [embeds(1, pipelines.TEXT)]}
PROMPTS = {"ip_adapter_image_embeds": [embeds(1, pipelines.TEXT, seed=s) for s in (7, 8)]}
LEFT = torch.ones(1, 1, 64, 64).triu()


@dataclass(frozen=True)
class Switch:
    """Something to switch on and off, the keywords of calls while it is on, and its reach.

    Attributes:
        matters: whether it changes the picture by more than rounding.
    """

    on: Callable[[Any], Any]
    off: Callable[[Any], Any]
    call: dict[str, Any] = field(default_factory=dict)
    matters: bool = True


def _ip_of_one_block(pipe: Any) -> None:
    switches.load_ip(pipe)
    pipe.set_ip_adapter_scale({"up": {"block_0": [0.0, 1.0]}})


def _weaken_by_steps(pipe: Any) -> None:
    pipe.unet.set_attn_processor(switches.Weakened(0.5))
    make(pipe)
    next(iter(pipe.unet.attn_processors.values())).settings["strength"] = 0.25


def _tile(pipe: Any) -> None:
    pipe.vae.enable_slicing()
    pipe.vae.enable_tiling()
    pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 32, 8  # smaller than a picture


def _usual(pipe: Any) -> None:
    pipe.unet.set_attn_processor(AttnProcessor2_0())


def _unload_ip(pipe: Any) -> None:
    pipe.unload_ip_adapter()


def _textual_inversion(pipe: Any) -> None:
    vector = torch.linspace(-1, 1, 64)
    for encoder, tokenizer in (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")):
        parts = {"text_encoder": getattr(pipe, encoder), "tokenizer": getattr(pipe, tokenizer)}
        pipe.load_textual_inversion({"<mine>": vector}, token="<mine>", **parts)


def _forget_inversion(pipe: Any) -> None:
    for encoder, tokenizer in (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")):
        parts = {"text_encoder": getattr(pipe, encoder), "tokenizer": getattr(pipe, tokenizer)}
        pipe.unload_textual_inversion(**parts)


SDXL = {
    "freeu": Switch(lambda p: p.enable_freeu(0.9, 0.2, 1.2, 1.4), lambda p: p.disable_freeu()),
    "attention processor": Switch(
        lambda p: p.unet.set_attn_processor(AttnProcessor()), _usual, matters=False
    ),
    "own processor, set otherwise later": Switch(_weaken_by_steps, _usual),
    "fused qkv": Switch(
        lambda p: p.fuse_qkv_projections(), lambda p: p.unfuse_qkv_projections(), matters=False
    ),
    "attention slicing": Switch(
        lambda p: p.enable_attention_slicing(1),
        lambda p: p.disable_attention_slicing(),
        matters=False,
    ),
    "vae slicing and tiling": Switch(
        _tile,
        lambda p: (p.vae.disable_slicing(), p.vae.disable_tiling()),
        {"output_type": "pt"},
    ),
    "channels last": Switch(
        lambda p: p.unet.to(memory_format=torch.channels_last),
        lambda p: p.unet.to(memory_format=torch.contiguous_format),
        matters=False,
    ),
    "ip-adapter": Switch(switches.load_ip, _unload_ip, PROMPT),
    "ip-adapter of one block": Switch(_ip_of_one_block, _unload_ip, PROMPT),
    "ip-adapter with a mask": Switch(
        switches.load_ip,
        _unload_ip,
        {**PROMPT, "cross_attention_kwargs": {"ip_adapter_masks": [LEFT]}},
    ),
    "two ip-adapters": Switch(lambda p: switches.load_ip(p, 2), _unload_ip, PROMPTS),
    "textual inversion": Switch(
        _textual_inversion, _forget_inversion, {"prompt": "a <mine> circle"}
    ),
    "bfloat16": Switch(lambda p: p.to(torch.bfloat16), lambda p: p.to(torch.float32)),
}
SD3 = {
    "ip-adapter": Switch(
        switches.load_ip_sd3, _unload_ip, {"ip_adapter_image_embeds": embeds(5, 32)}
    ),
    "fused qkv": Switch(
        lambda p: p.transformer.fuse_qkv_projections(),
        lambda p: p.transformer.unfuse_qkv_projections(),
        matters=False,
    ),
}
#: Another case is the same of something else.
SLOW = (
    *("own processor, set otherwise later", "attention processor", "attention slicing"),
    *("vae slicing and tiling", "channels last", "ip-adapter of one block"),
    "ip-adapter with a mask",
)
CASES = [
    pytest.param(
        build,
        switch,
        id=f"{build.__name__}, {name}",
        marks=pytest.mark.slow if name in SLOW else (),
    )
    for build, of in ((switches.sdxl, SDXL), (switches.sd3, SD3))
    for name, switch in of.items()
]


@pytest.fixture(scope="module")
def models() -> Iterator[dict[Any, Any]]:
    """One optimized pipeline a kind, and beside each a plain one."""
    with (
        hybridiff_compile.optimize(switches.sdxl(), mode="exact") as sdxl,
        hybridiff_compile.optimize(switches.sd3(), mode="exact") as sd3,
    ):
        yield {
            switches.sdxl: (sdxl, switches.sdxl()),
            switches.sd3: (sd3, switches.sd3()),
        }


@pytest.mark.parametrize(("build", "switch"), CASES)
def test_switched_on_and_off_again_after_optimize(
    models: dict[Any, Any], build: Callable[[], Any], switch: Switch
) -> None:
    model, plain = models[build]
    usual = {} if switch.call.get("output_type") is None else {"output_type": "pt"}
    before = apart(plain, **usual)
    for pipe in (model.pipe, plain):
        switch.on(pipe)
    expected = apart(plain, **switch.call)
    assert torch.equal(make(model, **switch.call), expected)
    assert (model.report.ranks, len(model.report.steps)) == (2, switches.STEPS)
    difference = (expected - before).abs().max() / before.abs().max()
    assert (difference > 1e-3) == switch.matters
    for pipe in (model.pipe, plain):
        switch.off(pipe)


def test_with_all_switched_off_the_pictures_are_as_before(models: dict[Any, Any]) -> None:
    for model, plain in models.values():
        assert torch.equal(make(model), apart(plain))
        assert model.report.ranks == 2


def test_switched_on_before_optimize() -> None:
    pipes = [switches.sdxl(), switches.sdxl()]
    for pipe in pipes:
        switches.load_ip(pipe)
        pipe.enable_freeu(0.9, 0.2, 1.2, 1.4)
    with hybridiff_compile.optimize(pipes[0], mode="exact") as model:
        assert torch.equal(make(model, **PROMPT), apart(pipes[1], **PROMPT))
        assert model.report.ranks == 2
