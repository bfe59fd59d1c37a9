"""Captioned scenes drawn in code, and a checker that reads them back without learned parts.

A scene is two shapes of different colours, one beside or above the other, on a dark background. The
caption says all of it, so a picture made from the caption shows by itself whether it was followed.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

SIZE = 64
#: Of the captions that the measurements draw.
PROMPT_SEED = 1
SHAPES = ("circle", "square", "triangle")
COLOURS = {
    "red": (235, 45, 40),
    "green": (60, 210, 70),
    "blue": (60, 110, 255),
    "yellow": (250, 225, 40),
    "white": (245, 245, 245),
    "magenta": (235, 70, 225),
}
BACKGROUNDS = {
    "black": (12, 12, 12),
    "dark green": (10, 70, 30),
    "dark blue": (20, 25, 100),
    "dark red": (95, 15, 20),
}
# Where the first shape lies, as seen from the second: (x, y), y growing downwards.
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

_HELD_OUT_OF = 10  # one combination in ten is never drawn for training
_CAPTION = re.compile(
    r"a (?P<colour>{c}) (?P<shape>{s}) (?P<relation>{r}) "
    r"a (?P<other_colour>{c}) (?P<other_shape>{s}) on a (?P<background>{b}) background".format(
        c="|".join(COLOURS),
        s="|".join(SHAPES),
        r="|".join(RELATIONS),
        b="|".join(BACKGROUNDS),
    )
)

# For a shape of radius one: its area, and how far its centroid lies below its centre.
_TEMPLATES = {"circle": (np.pi, 0.0), "square": (3.24, 0.0), "triangle": (2.2, 1 / 3)}

Picture = NDArray[np.uint8]
Split = Literal["train", "unseen"]


@dataclass(frozen=True)
class Scene:
    """One shape in some relation to another one, on a background."""

    colour: str
    shape: str
    relation: str
    other_colour: str
    other_shape: str
    background: str

    @property
    def caption(self) -> str:
        """The scene in words."""
        return (
            f"a {self.colour} {self.shape} {self.relation} a {self.other_colour} "
            f"{self.other_shape} on a {self.background} background"
        )

    @classmethod
    def parse(cls, caption: str) -> Scene:
        """Read a caption back into its scene."""
        match = _CAPTION.fullmatch(caption.strip().lower())
        if match is None:
            raise ValueError(f"not the caption of a scene: {caption!r}")
        scene = cls(**match.groupdict())
        if scene.colour == scene.other_colour:
            raise ValueError(f"the two shapes of a scene differ in colour: {caption!r}")
        return scene

    @property
    def mirrored(self) -> Scene:
        """The same picture told from the other shape's side."""
        return Scene(
            self.other_colour,
            self.other_shape,
            _OPPOSITE[self.relation],
            self.colour,
            self.shape,
            self.background,
        )

    @property
    def unseen(self) -> bool:
        """Whether the scene is held out of training.

        A scene and its mirrored wording show the same picture, so they share one side of the split.
        """
        key = min(self.caption, self.mirrored.caption)
        return hashlib.sha256(key.encode()).digest()[0] % _HELD_OUT_OF == 0


def words() -> list[str]:
    """Every word that a caption can hold, in a fixed order."""
    captions = (scene.caption for scene in all_scenes("train") + all_scenes("unseen"))
    return sorted({word for caption in captions for word in caption.split()})


@cache
def all_scenes(split: Split) -> tuple[Scene, ...]:
    """All scenes of one split, in a fixed order."""
    if split not in ("train", "unseen"):
        raise ValueError(f"unknown split {split!r}: it is 'train' or 'unseen'")
    pairs = itertools.permutations(COLOURS, 2)
    scenes = (
        Scene(colour, shape, relation, other_colour, other_shape, background)
        for (colour, other_colour), shape, other_shape, relation, background in itertools.product(
            pairs, SHAPES, SHAPES, RELATIONS, BACKGROUNDS
        )
    )
    return tuple(scene for scene in scenes if scene.unseen == (split == "unseen"))


def prompts(n: int, seed: int = 0, split: Split = "train") -> list[str]:
    """Draw n captions of one split; without repeats as long as the split has enough of them."""
    scenes = all_scenes(split)
    rng = np.random.default_rng(seed)
    picked: list[int] = []
    while len(picked) < n:
        picked.extend(rng.permutation(len(scenes))[: n - len(picked)].tolist())
    return [scenes[index].caption for index in picked]


def draw(scene: Scene, size: int = SIZE, seed: int = 0) -> Picture:
    """Draw a scene as (size, size, 3) bytes; the seed moves and scales the shapes a little."""
    rng = np.random.default_rng(seed)
    unit = size / SIZE
    dx, dy = RELATIONS[scene.relation]
    picture = np.empty((size, size, 3))
    picture[:] = BACKGROUNDS[scene.background]
    parts = ((scene.shape, scene.colour, 1), (scene.other_shape, scene.other_colour, -1))
    for shape, colour, side in parts:
        radius = rng.uniform(9, 11.5) * unit
        along, across = side * rng.uniform(13.5, 16.5), rng.uniform(-6, 6)
        centre = (
            (SIZE / 2 + dx * along + abs(dy) * across) * unit,
            (SIZE / 2 + dy * along + abs(dx) * across) * unit,
        )
        # One pixel of ramp around the outline is the anti-aliasing.
        cover = np.clip(0.5 - _distance(shape, size, centre, radius), 0, 1)[..., None]
        picture = picture * (1 - cover) + np.array(COLOURS[colour]) * cover
    return np.rint(picture).astype(np.uint8)


def check(picture: ArrayLike, scene: Scene, kinds: bool = True) -> bool:
    """Whether a picture shows the scene: background, colours, places and (with kinds) the shapes.

    Every pixel takes its nearest colour of the palette; nothing here is learned.
    """
    names = _named(picture)
    backs = {name: np.mean(names == name) for name in BACKGROUNDS}
    if (
        max(backs, key=lambda name: backs[name]) != scene.background
        or backs[scene.background] < 0.4
    ):
        return False
    if any(
        np.mean(_opened(names == colour)) > 0.01
        for colour in COLOURS
        if colour not in (scene.colour, scene.other_colour)
    ):
        return False  # something that the caption does not name
    masks = _opened(names == scene.colour), _opened(names == scene.other_colour)
    if not all(_is_one_shape(mask) for mask in masks):
        return False
    offset = (_centre(masks[0]) - _centre(masks[1])) / len(names)
    direction = np.array(RELATIONS[scene.relation])
    along = float(offset @ direction)
    across = float(np.abs(offset @ direction[::-1]))
    if along < 0.25 or across > along:
        return False
    return not kinds or all(
        _kind(mask) == shape
        for mask, shape in zip(masks, (scene.shape, scene.other_shape), strict=True)
    )


def _named(picture: ArrayLike) -> NDArray[np.str_]:
    """The palette's nearest name for every pixel of a square picture (bytes, or 0 .. 1)."""
    pixels = np.asarray(picture)
    if pixels.ndim != 3 or pixels.shape[0] != pixels.shape[1] or pixels.shape[2] != 3:
        raise ValueError(f"a picture is (size, size, 3), this one is {pixels.shape}")
    if np.issubdtype(pixels.dtype, np.floating):
        pixels = pixels * 255
    palette = COLOURS | BACKGROUNDS
    gaps = pixels[:, :, None, :].astype(float) - np.array(list(palette.values()))
    return np.array(list(palette))[np.square(gaps).sum(-1).argmin(-1)]


def _opened(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask without thin lines: the ramp between two colours passes near third ones."""
    core = np.logical_and.reduce(_with_neighbours(mask))
    return np.logical_or.reduce(_with_neighbours(core))


def _with_neighbours(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """A mask and its four shifts by one pixel."""
    padded = np.pad(mask, 1)
    return [
        mask,
        padded[:-2, 1:-1],
        padded[2:, 1:-1],
        padded[1:-1, :-2],
        padded[1:-1, 2:],
    ]


def _centre(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The (x, y) mean of a mask's pixels."""
    y, x = np.nonzero(mask)
    return np.array([x.mean(), y.mean()]) + 0.5


def _is_one_shape(mask: NDArray[np.bool_]) -> bool:
    """Whether a mask has a shape's area and is in one lump."""
    if not 0.02 < mask.mean() < 0.17:
        return False
    y, x = np.nonzero(mask)
    # A circle's root mean square distance from its centre is 0.40 of the root of its area, an
    # upright triangle's 0.44; two lumps of one colour lie far above.
    return bool(np.sqrt((x.var() + y.var()) / mask.sum()) < 0.55)


def _kind(mask: NDArray[np.bool_]) -> str:
    """The shape that, with the mask's own centre and area, covers the mask best."""
    area, (x, y) = mask.sum(), _centre(mask)
    overlaps: dict[str, float] = {}
    for shape, (share, drop) in _TEMPLATES.items():
        radius = float(np.sqrt(area / share))
        ideal = _distance(shape, len(mask), (x, y - drop * radius), radius) < 0
        overlaps[shape] = np.sum(ideal & mask) / np.sum(ideal | mask)
    return max(overlaps, key=lambda shape: overlaps[shape])


def _distance(
    shape: str, size: int, centre: tuple[float, float], radius: float
) -> NDArray[np.float64]:
    """Signed distance of every pixel's middle to a shape's outline, negative inside."""
    x = np.arange(size)[None, :] + 0.5 - centre[0]
    y = np.arange(size)[:, None] + 0.5 - centre[1]
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.9 * radius
    if shape == "triangle":
        # Upright: the base lies one radius below the centre, the tip one radius above it.
        slope = np.hypot(1.0, 0.55)
        sides = (np.abs(x) - (y + radius) * 0.55) / slope
        return np.maximum(sides, y - radius)
    raise ValueError(f"unknown shape {shape!r}: it is one of {', '.join(SHAPES)}")
