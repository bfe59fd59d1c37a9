"""The denoisers that can be planned for without weights: their configs lie in `configs/`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hybridiff_compile.arguments import check_choice
from hybridiff_compile.config import TRANSFORMER_SWITCHING, UNET_SWITCHING, SwitchSettings
from hybridiff_compile.errors import ConfigError

_CONFIGS = Path(__file__).resolve().parent / "configs"
#: From the Hub's unet/config.json or transformer/config.json of stable-diffusion-xl-base-1.0,
#: stable-diffusion-v1-5, stable-diffusion-3-medium, stable-diffusion-3.5-large,
#: PixArt-Sigma-XL-2-1024-MS, Wan2.1-T2V-1.3B, CogVideoX-2b, Qwen-Image and LTX-Video.
NAMES = (
    "sdxl",
    "sd15",
    "sd3-medium",
    "sd35-large",
    "pixart-sigma",
    "wan2.1-1.3b",
    "cogvideox-2b",
    "qwen-image",
    "ltx",
)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a pipeline does with denoisers of a class.

    Attributes:
        height, width, frames: of its default call, pixels.
        multiple: of pixels that height and width must be, by the VAE and the patches.
        every: frames must be a multiple of it and one more; 1 for pictures.
        dtype: that its model cards run it in.
        batched: whether it makes one call of both branches a step, or two calls.
    """

    height: int
    width: int
    frames: int
    multiple: int
    every: int
    dtype: torch.dtype
    batched: bool


_HALF, _BRAIN = torch.float16, torch.bfloat16
KINDS: Mapping[str, Kind] = {
    "UNet2DConditionModel": Kind(1024, 1024, 1, 8, 1, _HALF, True),
    "SD3Transformer2DModel": Kind(1024, 1024, 1, 16, 1, _HALF, True),
    "PixArtTransformer2DModel": Kind(1024, 1024, 1, 16, 1, _HALF, True),
    "WanTransformer3DModel": Kind(480, 832, 81, 16, 4, _BRAIN, False),
    "CogVideoXTransformer3DModel": Kind(480, 720, 49, 16, 4, _HALF, True),
    "QwenImageTransformer2DModel": Kind(1024, 1024, 1, 16, 1, _BRAIN, False),
    "LTXVideoTransformer3DModel": Kind(512, 704, 161, 32, 8, _BRAIN, True),
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """A denoiser's config, and what to make with it.

    Attributes:
        name: as in NAMES; "config" for a user's own.
        config: as diffusers writes it, with `_class_name`.
        kind: of its class.
        height, width, frames: pixels.
    """

    name: str
    config: Mapping[str, Any]
    kind: Kind
    height: int
    width: int
    frames: int

    def __post_init__(self) -> None:
        """Raise ConfigError for a size that the model cannot make."""
        multiple, every = self.kind.multiple, self.kind.every
        for what, value in (("height", self.height), ("width", self.width)):
            if value < 1 or value % multiple:
                raise ConfigError(
                    f"{what}={value} is no positive multiple of {multiple} pixels, as {self.name} "
                    f"needs; take {max(1, value // multiple) * multiple}."
                )
        if every == 1 and self.frames != 1:
            raise ConfigError(f"frames={self.frames}: {self.name} makes pictures; leave it away.")
        if self.frames < 1 or (self.frames - 1) % every:
            raise ConfigError(
                f"frames={self.frames} is not a multiple of {every} and one more, as {self.name} "
                f"needs; take {max(0, self.frames - 1) // every * every + 1}."
            )

    @property
    def family(self) -> SwitchSettings:
        """The paper's constants for its kind."""
        is_unet = self.config["_class_name"].startswith("UNet")
        return UNET_SWITCHING if is_unet else TRANSFORMER_SWITCHING


def named(name: str, **size: int | None) -> Architecture:
    """An architecture by name.

    Args:
        name: one of NAMES.
        size: as in `of_config`.

    Raises:
        ConfigError: there is none of that name, or it cannot make that size.
    """
    check_choice("model", name, NAMES)
    return of_config(_CONFIGS / f"{name}.json", **size, name=name)


def of_config(
    config: Mapping[str, Any] | Path,
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    *,
    name: str = "config",
) -> Architecture:
    """An architecture of a user's own.

    Args:
        config: a denoiser's config with `_class_name`, its file, the folder that holds it, or
            that of a pipeline.
        height, width, frames: of what to make; None is the default call's.
        name: of it.

    Raises:
        ConfigError: it cannot be read, its class is not known, or it cannot make that size.
    """
    if isinstance(config, Path):
        config = _read(config)
    of = config.get("_class_name") if isinstance(config, Mapping) else None
    if not isinstance(config, Mapping) or not isinstance(of, str) or of not in KINDS:
        raise ConfigError(
            f"_class_name={of!r} is no denoiser that can be planned for without weights; it is "
            f"one of {', '.join(KINDS)}. Pass the pipeline itself for another."
        )
    kind = KINDS[of]
    usual = kind.height, kind.width
    # A UNet needs to say what it was trained at; of a transformer the pipeline's default is known.
    trained = of == "UNet2DConditionModel" or config.get("sample_size") is not None
    if trained and None in (height, width):
        usual = _trained(config)
    return Architecture(
        name=name,
        config=config,
        kind=kind,
        height=usual[0] if height is None else height,
        width=usual[1] if width is None else width,
        frames=kind.frames if frames is None else frames,
    )


def _read(path: Path) -> Any:
    """What a config's file holds: itself, that of its folder, or that of a pipeline's denoiser."""
    if path.is_dir():
        files = [path / part / "config.json" for part in ("", "unet", "transformer")]
        path = next((file for file in files if file.is_file()), files[0])
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ConfigError(
            f"{path} cannot be read as a config: {e}; name a config.json that diffusers wrote."
        ) from e


def _trained(config: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width, pixels, that a denoiser was trained at."""
    size = config.get("sample_size")
    sides: Any = size if isinstance(size, list | tuple) else (size, size)
    if [type(side) for side in sides] != [int, int]:
        raise ConfigError(
            f"sample_size={size!r} in the config is no size in latent pixels, a number or two: "
            "pass height and width."
        )
    return 8 * sides[0], 8 * sides[1]
