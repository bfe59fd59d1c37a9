"""Pictures in a list: its parts are calls of shorter lists."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from hybridiff_compile.capture import listed
from hybridiff_compile.capture.call import DenoiserCall


def call_of(pictures: Any, lengths: list[int], **more: Any) -> DenoiserCall:
    texts = [torch.full((n, 2), float(n)) for n in lengths]
    times = torch.arange(len(lengths), dtype=torch.float32)
    return DenoiserCall.of(("x", "t", "texts"), (pictures, times), {"texts": texts, **more})


def pictures_of(*seeds: int) -> list[torch.Tensor]:
    return [torch.randn(3, 4, generator=torch.Generator().manual_seed(s)) for s in seeds]


def test_each_part_has_its_pictures_their_texts_and_times():
    pictures = pictures_of(0, 1)
    u, c = listed.parts(call_of(pictures, [5, 7], scale=2.0)).calls
    for call, i, length in ((u, 0, 5), (c, 1, 7)):
        (x, t), more = call.arguments[0].values(), call.arguments[1]
        assert x == [pictures[i]]
        assert_close(t, torch.tensor([float(i)]))
        assert [tuple(text.shape) for text in more["texts"]] == [(length, 2)]
        assert more["scale"] == 2.0


@pytest.mark.parametrize(("count", "sizes"), [(2, [1, 1]), (3, [1, 1, 1]), (6, [3, 3])])
def test_ranks_share_as_few_parts_as_there_are(count, sizes):
    parts = listed.parts(call_of(pictures_of(*range(count)), [4] * count)).calls
    assert [len(listed.pictures(part)) for part in parts] == sizes


def test_what_counts_otherwise_is_given_to_each_part():
    tables = [torch.zeros(2)] * 3
    for part in listed.parts(call_of(pictures_of(0, 1), [4, 4], tables=tables, on=[1, 2])).calls:
        assert len(part.arguments[1]["tables"]) == 3
        assert part.arguments[1]["on"] == [1, 2]


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        ((0, 0), True),
        ((0, 1), False),
        ((0, 1, 0, 1), True),
        ((0, 0, 1), False),
        ((0, 1, 0, 1, 0), False),
        ((0,), False),
    ],
)
def test_repeated_pictures_are_those_of_branches(seeds, expected):
    assert listed.are_repeated(call_of(pictures_of(*seeds), [4] * len(seeds))) == expected


def test_pictures_of_other_shapes_are_not_repeated():
    assert not listed.are_repeated(call_of([torch.zeros(3, 4), torch.zeros(4, 3)], [4, 4]))


@pytest.mark.parametrize(
    "first", [torch.zeros(2, 3), [[torch.zeros(2)], [torch.zeros(2)]], [torch.zeros(2), None], []]
)
def test_another_first_argument_is_no_list_of_pictures(first):
    assert listed.pictures(call_of(first, [4, 4])) == []


def test_the_answers_to_parts_are_put_in_order():
    a, b, c = pictures_of(0, 1, 2)
    assert listed.merged([([a, b],), ([c],)]) == ([a, b, c],)
    assert listed.merged([{"sample": [a], "n": 3}, {"sample": [b], "n": 3}]) == {
        "sample": [a, b],
        "n": 3,
    }
    assert listed.merged([[a]]) == [a]
