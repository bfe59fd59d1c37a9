"""Small denoisers, and the step programs captured from them."""

from __future__ import annotations

import functools

import torch
from torch import fx, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from hybridiff_compile.capture.call import DenoiserCall
from hybridiff_compile.capture.trace import Captured, capture
from hybridiff_compile.ir import Phase, StepProgram
from hybridiff_compile.passes import (
    CutStages,
    LinkRanks,
    SkewStages,
    SplitCfg,
    build_programs,
    run_passes,
)

PARAMETERS = ("sample", "timestep", "encoder_hidden_states", "added", "return_dict")


class Toy(nn.Module):
    """A denoiser with a skip connection, an embedding that both halves read, and a buffer."""

    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.conv_in = nn.Conv2d(4, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.Conv2d(8, 8, 3, padding=1)
        self.conv_out = nn.Conv2d(8, 4, 3, padding=1)
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        added: dict[str, torch.Tensor] | None = None,
        return_dict: bool = True,
    ) -> dict[str, torch.Tensor] | tuple[torch.Tensor]:
        emb = self.embed(encoder_hidden_states.mean(1)) + torch.sin(timestep * self.scale)
        if added is not None:
            emb = emb + added["text_embeds"]
        emb = emb[:, :, None, None]
        skip = self.conv_in(sample)
        h = self.down(silu(skip + emb))
        h = self.up(silu(h + emb))
        out = self.conv_out(h + skip)
        return {"sample": out} if return_dict else (out,)


class Attention(nn.Module):
    """A denoiser of two attention blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(16, 48) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        x = sample + timestep
        for qkv, out in zip(self.qkv, self.out, strict=True):
            q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in qkv(x).chunk(3, -1))
            x = x + out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))
        return x


def seeded(kind: type[nn.Module]) -> nn.Module:
    """A denoiser whose weights are the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().eval()


def call_of(batch: int = 1, seed: int = 1, **more: object) -> DenoiserCall:
    """The Toy's arguments as a pipeline gives them: `[uncond, cond]` in one batch of 2B."""
    g = torch.Generator().manual_seed(seed)
    sample = torch.randn(batch, 4, 8, 8, generator=g)
    args = (torch.cat([sample, sample]), torch.tensor(3.0 + seed))
    added = {"text_embeds": torch.randn(2 * batch, 8, generator=g)}
    text = torch.randn(2 * batch, 3, 6, generator=g)
    kwargs = {"encoder_hidden_states": text, "added": added, "return_dict": False}
    return DenoiserCall.of(PARAMETERS, args, {**kwargs, **more})


def run(denoiser: nn.Module, call: DenoiserCall) -> torch.Tensor:
    """What the Toy itself returns for a call."""
    positional, keyword = call.arguments
    with torch.no_grad():
        (out,) = denoiser(*positional.values(), **keyword)
    return out


def capture_of(denoiser: nn.Module, call: DenoiserCall, together: bool = False) -> Captured:
    return capture(denoiser, call, (run(denoiser, call),), together=together)


@functools.cache
def captured() -> Captured:
    """The Toy's step, captured once; programs are never edited, so tests share it."""
    return capture_of(seeded(Toy), call_of())


@functools.cache
def together() -> Captured:
    """The Toy's step with both branches in one call."""
    return capture_of(seeded(Toy), call_of(), together=True)


def split() -> StepProgram:
    return run_passes(captured().program, (SplitCfg(),))


def cut() -> StepProgram:
    return run_passes(split(), (CutStages(),))


def skewed() -> StepProgram:
    return run_passes(cut(), (SkewStages(),))


def linked() -> StepProgram:
    return run_passes(split(), (LinkRanks(),))


def guarded() -> StepProgram:
    return build_programs(captured().program, "exact")[Phase.SERIAL]


def capture_simple(denoiser: nn.Module, sample: torch.Tensor | None = None) -> Captured:
    """Capture `denoiser(sample)` from a doubled call."""
    half = torch.randn(1, 4) if sample is None else sample
    call = DenoiserCall.of(("sample",), (torch.cat([half, half]),), {})
    positional, keyword = call.arguments
    return capture(denoiser, call, denoiser(*positional.values(), **keyword))


def denoiser_of(step: Captured) -> fx.GraphModule:
    """The graph of one branch."""
    module = step.program.graphs[0].get_submodule("denoiser")
    assert isinstance(module, fx.GraphModule)
    return module
