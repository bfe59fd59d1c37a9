"""How close two sets of pictures are, and whether a picture shows what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Pictures = NDArray[np.floating[Any]]

#: PSNR of identical pictures, and of any that differ less than this can tell.
IDENTICAL_DB = 100.0


def psnr_db(pictures: Pictures, reference: Pictures) -> float:
    """Mean over pictures of each picture's PSNR in dB.

    Args:
        pictures: (count, height, width, channels) in [0, 1], before 8-bit rounding.
        reference: as `pictures`.

    Returns:
        The mean, each picture counting as at most `IDENTICAL_DB`.
    """
    if pictures.shape != reference.shape:
        raise ValueError(
            f"pictures {pictures.shape} and reference {reference.shape} differ in shape"
        )
    gap = pictures.astype(np.float64) - reference.astype(np.float64)
    errors = np.square(gap).mean(axis=tuple(range(1, gap.ndim)))
    floor = 10 ** (-IDENTICAL_DB / 10)
    return float(np.mean(-10 * np.log10(np.maximum(errors, floor))))


def max_abs_error(latents: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> float:
    """Largest absolute difference between two lists of final latents."""
    pairs = zip(latents, reference, strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def to_bytes(picture: Pictures) -> NDArray[np.uint8]:
    """Round a picture in [0, 1] to the 8 bits that a file holds."""
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
