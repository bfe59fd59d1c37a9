"""How close two sets of pictures are, or two sets of latents."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Pictures = NDArray[np.floating[Any]]

#: PSNR of identical pictures, and of any that differ less than this can tell.
IDENTICAL_DB = 100.0

# The network that LPIPS looks at pictures with, as torchvision keeps it once it was downloaded.
_LPIPS_NETWORK = "alexnet-owt-7be5be79.pth"


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


def ssim(pictures: Pictures, reference: Pictures) -> float | None:
    """Mean structural similarity, 1 at most; None where torchmetrics is not installed.

    Args:
        pictures, reference: (count, height, width, channels) in [0, 1].
    """
    measure = _torchmetrics("structural_similarity_index_measure")
    if measure is None:
        return None
    return float(measure(_channels_first(pictures), _channels_first(reference), data_range=1.0))


def lpips(pictures: Pictures, reference: Pictures) -> float | None:
    """Mean perceptual distance (AlexNet), 0 at least.

    Args:
        pictures, reference: (count, height, width, 3) in [0, 1].

    Returns:
        None where torchmetrics or torchvision is not installed, or torchvision has not kept the
        network's weights: nothing is downloaded.
    """
    network = Path(torch.hub.get_dir(), "checkpoints", _LPIPS_NETWORK)
    if not network.is_file() or importlib.util.find_spec("torchvision") is None:
        return None
    measure = _torchmetrics("learned_perceptual_image_patch_similarity")
    if measure is None:
        return None
    pair = _channels_first(pictures), _channels_first(reference)
    return float(measure(*pair, net_type="alex", normalize=True))


def _torchmetrics(name: str) -> Callable[..., torch.Tensor] | None:
    if importlib.util.find_spec("torchmetrics") is None:
        return None
    return getattr(importlib.import_module("torchmetrics.functional.image"), name)


def _channels_first(pictures: Pictures) -> torch.Tensor:
    return torch.from_numpy(pictures).float().permute(0, 3, 1, 2)


def relative_error(latents: torch.Tensor, reference: torch.Tensor) -> float:
    """Mean absolute difference over the reference's mean size; 0 means the same bits."""
    gap = (latents.double() - reference.double()).abs().mean()
    return float(gap / reference.double().abs().mean()) if gap else 0.0


def max_abs_error(latents: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> float:
    """Largest absolute difference between two lists of final latents."""
    pairs = zip(latents, reference, strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def to_bytes(picture: Pictures) -> NDArray[np.uint8]:
    """Round a picture in [0, 1] to the 8 bits that a file holds."""
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
