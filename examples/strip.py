"""Pictures of the same captions side by side: one device, the paper's mode, and hybrid.

Run it with `python examples/strip.py`; it writes `strip.png` in a minute. The note under a picture
is its PSNR against one device that runs the two branches one after the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

import hybridiff_compile
from hybridiff_compile.bench import models, scenes
from hybridiff_compile.bench.charts import Shown, pictures_side_by_side
from hybridiff_compile.bench.models import DRAWING
from hybridiff_compile.quality import psnr_db, to_bytes

PICTURES = 4
MODES: dict[str, dict[str, Any]] = {
    "one device": {"gpus": 1, "mode": "exact"},
    "paper, k = 5": {"mode": "paper", "tau1": 15, "k": 5},
    "paper, k = 30": {"mode": "paper", "tau1": 15, "k": 30},
    "hybrid": {},
}


def make(name: str, settings: dict[str, Any], captions: list[str]) -> list[np.ndarray]:
    """One picture of each caption, [1, height, width, 3] in [0, 1]."""
    pipe: Any = models.load(name)
    pipe.set_progress_bar_config(disable=True)
    call = {**models.call_settings(name), "num_inference_steps": 50, "output_type": "np"}
    with hybridiff_compile.optimize(pipe, **settings) as model:
        seeded = [torch.Generator().manual_seed(seed) for seed in range(len(captions))]
        return [
            model(caption, generator=generator, **call).images
            for caption, generator in zip(captions, seeded, strict=True)
        ]


def shown(caption: str, picture: np.ndarray, reference: np.ndarray) -> Shown:
    """A picture with its dB, and whether it shows what its caption says."""
    right = scenes.check(to_bytes(picture[0]), scenes.Scene.parse(caption))
    db = psnr_db(picture, reference)
    return Shown(picture[0], f"{db:.0f} dB, {'right' if right else 'wrong'}")


def main() -> None:
    """Make the pictures and write the strip."""
    torch.set_num_threads(1)
    captions = scenes.prompts(PICTURES, scenes.PROMPT_SEED, split="unseen")
    drawn = {}
    for name in DRAWING:
        made = {label: make(name, settings, captions) for label, settings in MODES.items()}
        reference = made["one device"]
        drawn[name] = {
            label: [shown(*them) for them in zip(captions, of, reference, strict=True)]
            for label, of in made.items()
        }
    footnote = "dB: PSNR against one device, 100 at most. right / wrong: by the caption."
    pictures_side_by_side(Path("strip.png"), captions, drawn, footnote)
    print("wrote strip.png")


if __name__ == "__main__":
    main()
