"""Train the two embedded pipelines, tiny-sdxl and tiny-sd3, on scenes drawn in code.

In this order; seeded, and the two long stages resume when the same command is run again:

    python examples/train_tiny.py vae
    python examples/train_tiny.py sdxl --minutes 65
    python examples/train_tiny.py sd3 --minutes 65
    python examples/train_tiny.py evaluate --model tiny-sdxl --prompts 100

The learning rate follows the clock, so that a slow machine also ends with small steps.
"""

# diffusers exports its names lazily, which pyright does not see.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import enum
import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL, DiffusionPipeline
from PIL import Image
from tiny_pipelines import build_sd3, build_sdxl, build_vae, loss_sd3, loss_sdxl
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hybridiff_compile.bench import models, scenes

ASSETS = Path(__file__).resolve().parent.parent / "hybridiff_compile" / "assets"
SCENES = 30_000

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Work = Annotated[Path, typer.Option(help="Folder for checkpoints.")]
WORK = Path("scratch/train_tiny")


class Split(enum.Enum):
    """The two halves of the scenes."""

    TRAIN = "train"
    UNSEEN = "unseen"


def drawn(count: int, seed: int) -> tuple[list[str], Tensor]:
    """Captions of the training split and their pictures, (count, 3, 64, 64) in -1 .. 1."""
    captions = scenes.prompts(count, seed)
    pictures = [
        scenes.draw(scenes.Scene.parse(caption), seed=seed + index)
        for index, caption in enumerate(captions)
    ]
    return captions, torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1


@torch.no_grad()
def dataset(vae: Any, work: Path) -> tuple[list[str], Tensor]:
    """Captions and unscaled latents of all training scenes, encoded once and kept."""
    kept = work / "latents.pt"
    if not kept.exists():
        parts = [drawn(500, seed) for seed in range(1_000_000, 1_000_000 + SCENES, 500)]
        latents = [vae.encode(pictures).latent_dist.mean for _, pictures in parts]
        captions = [caption for part, _ in parts for caption in part]
        torch.save((captions, torch.cat(latents)), kept)
    return torch.load(kept)


def ticks(
    steps: int, minutes: float, start: int = 0, spent: float = 0.0
) -> Iterator[tuple[int, float, float]]:
    """Step, learning-rate factor and seconds spent; ends with the steps or the minutes."""
    begin = time.monotonic() - spent
    for step in range(start, steps):
        seconds = time.monotonic() - begin
        past = max(step / steps, seconds / (60 * minutes))
        if past >= 1:
            return
        cosine = 0.5 * (1 + math.cos(math.pi * past))
        yield step, min(1.0, (step + 1) / 300) * (0.02 + 0.98 * cosine), seconds


@app.command()
def vae(
    steps: int = 2500, minutes: float = 6.0, batch: int = 16, threads: int = 2, work: Work = WORK
) -> None:
    """Train the autoencoder that both pipelines share."""
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    model: Any = build_vae()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    pool = drawn(4000, 7)[1]
    for step, factor, _ in ticks(steps, minutes):
        pictures = pool[torch.randint(len(pool), (batch,))]
        posterior = model.encode(pictures).latent_dist
        decoded = model.decode(posterior.sample()).sample
        error = decoded - pictures
        loss = error.abs().mean() + error.square().mean() + 1e-4 * posterior.kl().mean() / 256
        optimizer.param_groups[0]["lr"] = 2e-3 * factor
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            print(f"vae {step} loss {loss.item():.4f}", flush=True)
    with torch.no_grad():
        latents = torch.cat(
            [model.encode(part).latent_dist.mean for part in pool[:1000].split(100)]
        )
    print("latents: mean", latents.mean((0, 2, 3)).tolist(), "std", latents.std((0, 2, 3)).tolist())
    model.register_to_config(
        scaling_factor=round(1 / latents.std().item(), 5),
        shift_factor=round(latents.mean().item(), 5),
    )
    model.save_pretrained(work / "vae")
    (work / "latents.pt").unlink(missing_ok=True)
    dataset(model, work)


def learned(pipe: DiffusionPipeline) -> nn.ModuleDict:
    """The parts of a pipeline that are trained together."""
    names = ("unet", "transformer", "text_encoder", "text_encoder_2")
    return nn.ModuleDict({name: pipe.components[name] for name in names if name in pipe.components})


def publish(pipe: DiffusionPipeline, work: Path, target: Path) -> None:
    """Write a pipeline so that whoever loads it meanwhile never meets half a file."""
    staged = work / f"{target.name}-staged"
    pipe.save_pretrained(staged)
    for file in sorted(path for path in staged.rglob("*") if path.is_file()):
        final = target / file.relative_to(staged)
        final.parent.mkdir(parents=True, exist_ok=True)
        passing = final.with_name(final.name + ".new")
        if file.suffix == ".json":  # without the folder that a part was loaded from
            content = json.loads(file.read_text())
            content.pop("_name_or_path", None)
            passing.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
        else:
            shutil.copyfile(file, passing)
        passing.replace(final)


def train(
    name: str,
    build: Any,
    loss_of: Any,
    minutes: float,
    steps: int,
    batch: int,
    rate: float,
    work: Path,
    assets: Path,
) -> None:
    """Train a denoiser and its text encoders, and publish their moving average."""
    torch.manual_seed(1)
    torch.set_num_threads(1)
    # Products in bf16 where the processor has them, and attention as plain products: together half
    # the time of a step at this size.
    torch.set_float32_matmul_precision("medium")
    onednn: Any = torch.backends.mkldnn
    onednn.conv.fp32_precision = "bf16"
    autoencoder = AutoencoderKL.from_pretrained(work / "vae").requires_grad_(False).eval()
    captions, latents = dataset(autoencoder, work)
    pipe, average = build(autoencoder), build(autoencoder)
    live, mean = learned(pipe), learned(average).requires_grad_(False).eval()
    mean.load_state_dict(live.state_dict())
    optimizer = torch.optim.AdamW(live.parameters(), betas=(0.9, 0.99), fused=True)
    kept, start, spent = work / f"{name}.pt", 0, 0.0
    if kept.exists():
        state = torch.load(kept)
        live.load_state_dict(state["live"])
        mean.load_state_dict(state["mean"])
        optimizer.load_state_dict(state["optimizer"])
        start, spent = state["step"], state["spent"]
        torch.manual_seed(start)

    def keep(step: int, seconds: float) -> None:
        parts = {"live": live, "mean": mean, "optimizer": optimizer}
        states = {key: part.state_dict() for key, part in parts.items()}
        torch.save({**states, "step": step, "spent": seconds}, kept.with_suffix(".new"))
        kept.with_suffix(".new").replace(kept)
        publish(average, work, assets / name)

    step, seconds, smooth, saved = start, spent, 1.0, time.monotonic()
    for step, factor, seconds in ticks(steps, minutes, start, spent):
        chosen = torch.randint(len(captions), (batch,))
        with sdpa_kernel(SDPBackend.MATH):
            loss = loss_of(pipe, [captions[index] for index in chosen.tolist()], latents[chosen])
        optimizer.param_groups[0]["lr"] = rate * factor
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(live.parameters(), 1.0)
        optimizer.step()
        decay = min(0.999, (step + 1) / (step + 10))
        with torch.no_grad():
            for slow, fast in zip(mean.parameters(), live.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        smooth += 0.02 * (loss.item() - smooth)
        if step % 100 == 0:
            print(f"{name} {step} loss {smooth:.4f} after {seconds:.0f} s", flush=True)
        if time.monotonic() - saved > 150:
            keep(step + 1, seconds)
            saved = time.monotonic()
    keep(step + 1, seconds)


@app.command()
def sdxl(
    minutes: float = 65.0,
    steps: int = 20_000,
    batch: int = 32,
    rate: float = 1.5e-3,
    work: Work = WORK,
    assets: Path = ASSETS,
) -> None:
    """Train tiny-sdxl."""
    train("tiny-sdxl", build_sdxl, loss_sdxl, minutes, steps, batch, rate, work, assets)


@app.command()
def sd3(
    minutes: float = 65.0,
    steps: int = 20_000,
    batch: int = 32,
    rate: float = 1.5e-3,
    work: Work = WORK,
    assets: Path = ASSETS,
) -> None:
    """Train tiny-sd3."""
    train("tiny-sd3", build_sd3, loss_sd3, minutes, steps, batch, rate, work, assets)


@app.command()
def evaluate(
    model: str = "tiny-sdxl",
    prompts: int = 100,
    steps: int = 50,
    guidance: Annotated[float | None, typer.Option(help="Default: the model's own.")] = None,
    split: Split = Split.UNSEEN,
    threads: int = 1,
    grid: Annotated[Path | None, typer.Option(help="Write the first 32 pictures here.")] = None,
) -> None:
    """Measure the share of prompts drawn right, and the discrepancy of the branches by step."""
    torch.set_num_threads(threads)
    pipe: Any = models.load(model)
    pipe.set_progress_bar_config(disable=True)
    settings = models.call_settings(model)
    if guidance is not None:
        settings["guidance_scale"] = guidance
    gaps: list[Tensor] = []
    denoiser = pipe.components.get("unet") or pipe.components["transformer"]
    if settings["guidance_scale"] > 1:
        denoiser.register_forward_hook(lambda _module, _args, out: gaps.append(relative(out[0])))
    captions = scenes.prompts(prompts, seed=5, split=split.value)
    pictures: list[np.ndarray] = []
    for start in range(0, prompts, 25):
        part = captions[start : start + 25]
        seeds = [torch.Generator().manual_seed(start + index) for index in range(len(part))]
        pictures.extend(
            pipe(
                part, num_inference_steps=steps, generator=seeds, output_type="np", **settings
            ).images
        )
    wanted = [scenes.Scene.parse(caption) for caption in captions]
    right = [scenes.check(*pair) for pair in zip(pictures, wanted, strict=True)]
    loose = [scenes.check(*pair, kinds=False) for pair in zip(pictures, wanted, strict=True)]
    print(f"{model}: {steps} steps, {split.value} prompts, guidance {settings['guidance_scale']}")
    print(f"drawn right: {sum(right)} of {prompts} ({sum(loose)} if any shape will do)")
    if gaps:
        curve = torch.stack(gaps[:steps]).mean(1).tolist()
        print("discrepancy by step:", " ".join(f"{value:.3f}" for value in curve))
    if grid is not None:
        rows = [
            np.concatenate(pictures[at : at + 8], 1) for at in range(0, min(32, prompts) - 7, 8)
        ]
        pixels = np.rint(np.concatenate(rows) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(grid)
        print(
            "\n".join(
                f"{ok!s:5} {text}" for ok, text in zip(right[:32], captions[:32], strict=True)
            )
        )


def relative(out: Tensor) -> Tensor:
    """Mean |conditional - unconditional| over mean |unconditional|, for each picture of a batch."""
    plain, conditional = out.chunk(2)
    axes = (1, 2, 3)
    return (conditional - plain).abs().mean(axes) / plain.abs().mean(axes)


if __name__ == "__main__":
    app()
