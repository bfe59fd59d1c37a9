"""Scenes: captions there and back, the split, the drawing and the checker."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hybridiff_compile.bench import scenes
from hybridiff_compile.bench.scenes import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, Scene

SCENE = Scene("red", "circle", "left of", "blue", "square", "dark green")
TURNED = {"left of": "above", "above": "right of", "right of": "below", "below": "left of"}


def sample(count: int) -> list[tuple[Scene, scenes.Picture]]:
    captions = scenes.prompts(count, seed=11)
    parsed = [Scene.parse(caption) for caption in captions]
    return [(scene, scenes.draw(scene, seed=index)) for index, scene in enumerate(parsed)]


def next_of(names: dict[str, tuple[int, int, int]] | tuple[str, ...], *taken: str) -> str:
    return next(name for name in names if name not in taken)


def test_caption_says_the_scene() -> None:
    assert SCENE.caption == "a red circle left of a blue square on a dark green background"


def test_every_caption_parses_back() -> None:
    every = scenes.all_scenes("train") + scenes.all_scenes("unseen")
    pairs = len(COLOURS) * (len(COLOURS) - 1)
    assert len(set(every)) == len(every)
    assert len(every) == pairs * len(SHAPES) ** 2 * len(RELATIONS) * len(BACKGROUNDS)
    assert all(Scene.parse(scene.caption) == scene for scene in every)


@pytest.mark.parametrize(
    "caption",
    ["", "a red circle", SCENE.caption + " please", SCENE.caption.replace("blue", "beige")],
)
def test_other_text_is_refused(caption: str) -> None:
    with pytest.raises(ValueError, match="not the caption of a scene"):
        Scene.parse(caption)


def test_equal_colours_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in colour"):
        Scene.parse(SCENE.caption.replace("blue", "red"))


def test_split_keeps_both_wordings_of_a_picture_together() -> None:
    train, unseen = scenes.all_scenes("train"), scenes.all_scenes("unseen")
    assert 0.07 < len(unseen) / (len(train) + len(unseen)) < 0.13
    assert not {scene.mirrored for scene in unseen} & set(train)
    with pytest.raises(ValueError, match=r"'test'.*'train' or 'unseen'"):
        scenes.prompts(1, split="test")  # pyright: ignore[reportArgumentType]


def test_prompts_are_repeatable_and_of_their_split() -> None:
    first = scenes.prompts(50, seed=3, split="unseen")
    assert first == scenes.prompts(50, seed=3, split="unseen")
    assert first != scenes.prompts(50, seed=4, split="unseen")
    assert len(set(first)) == 50
    assert all(Scene.parse(caption).unseen for caption in first)
    assert len(scenes.prompts(500, split="unseen")) == 500


def test_seed_moves_the_shapes() -> None:
    first = scenes.draw(SCENE, seed=1)
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, scenes.draw(SCENE, seed=1))
    assert not np.array_equal(first, scenes.draw(SCENE, seed=2))


def test_checker_accepts_true_scenes() -> None:
    pairs = sample(200)
    assert sum(scenes.check(picture, scene) for scene, picture in pairs) >= 199
    assert all(scenes.check(picture / 255, scene.mirrored) for scene, picture in pairs[:20])


@pytest.mark.parametrize("size", [48, 128])
def test_checker_accepts_other_sizes(size: int) -> None:
    assert scenes.check(scenes.draw(SCENE, size=size), SCENE)


def test_checker_rejects_wrong_scenes() -> None:
    for scene, picture in sample(60):
        wrong = [
            replace(scene, colour=scene.other_colour, other_colour=scene.colour),
            replace(scene, relation=scene.mirrored.relation),
            replace(scene, relation=TURNED[scene.relation]),
            replace(scene, background=next_of(BACKGROUNDS, scene.background)),
            replace(scene, colour=next_of(COLOURS, scene.colour, scene.other_colour)),
            replace(scene, other_shape=next_of(SHAPES, scene.other_shape)),
        ]
        assert not any(scenes.check(picture, other) for other in wrong), scene.caption


def test_kind_of_shape_can_be_left_out() -> None:
    picture = scenes.draw(replace(SCENE, shape="triangle"))
    assert not scenes.check(picture, SCENE)
    assert scenes.check(picture, SCENE, kinds=False)


def test_checker_rejects_pictures_of_nothing_and_of_too_much() -> None:
    empty = np.full((64, 64, 3), BACKGROUNDS["dark green"], dtype=np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    third = scenes.draw(SCENE)
    third[2:12, 2:12] = COLOURS["yellow"]
    twice = scenes.draw(SCENE)
    twice[2:12, 50:60] = COLOURS["red"]
    assert not any(scenes.check(picture, SCENE) for picture in (empty, noise, third, twice))


def test_checker_refuses_what_is_no_picture() -> None:
    with pytest.raises(ValueError, match=r"\(3, 64, 64\)"):
        scenes.check(np.zeros((3, 64, 64)), SCENE)
