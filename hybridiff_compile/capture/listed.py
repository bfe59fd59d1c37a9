"""Calls of several pictures in a list, each a tensor of its own: a batch without a batch dimension.

Texts of several lengths come so. Its parts are shorter lists, calls of their own, that need not be
of one shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from hybridiff_compile.capture.branches import Branches
from hybridiff_compile.capture.call import DenoiserCall, parts_of


def pictures(call: DenoiserCall) -> list[torch.Tensor]:
    """The tensors in the list that is a call's first argument; [] if that is another thing."""
    positional, keyword = call.arguments
    first: Any = next(iter({**positional, **keyword}.values()), None)
    return list(first) if _is_list(first) else []


def has_several(call: DenoiserCall) -> bool:
    """Whether a call's first argument is a list of two pictures or more."""
    return len(pictures(call)) > 1


def are_repeated(call: DenoiserCall) -> bool:
    """Whether the pictures consist of bit-equal parts, 2 or more. Waits for the device."""
    given = pictures(call)

    def same(count: int) -> bool:
        size, left = divmod(len(given), count)
        return not left and all(torch.equal(x, given[i % size]) for i, x in enumerate(given))

    return any(same(count) for count in range(2, len(given) + 1))


def parts(call: DenoiserCall) -> Branches:
    """The calls of shorter lists that make up a call, as many as ranks share best.

    Every list of as many tensors as there are pictures is cut, and every tensor of as many rows.
    The rest is given to each part. Whether that is right is seen by comparing values.

    Args:
        call: of a list of pictures.
    """
    count = len(pictures(call))
    size = count // parts_of(count)

    def part(value: Any, start: int) -> Any:
        has_rows = isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == count
        if has_rows or (_is_list(value) and len(value) == count):
            return value[start : start + size]
        if isinstance(value, dict):
            return {key: part(inner, start) for key, inner in value.items()}
        return value

    positional, keyword = call.arguments
    names = tuple(positional)
    calls = []
    for start in range(0, count, size):
        args = tuple(part(value, start) for value in positional.values())
        calls.append(DenoiserCall.of(names, args, part(keyword, start)))
    return Branches(tuple(calls))


def merged(answers: Sequence[Any]) -> Any:
    """The answer to a call, of those to its parts: their lists, one after the other."""
    first, *others = answers
    if not others:
        return first

    def together(*lists: Any) -> Any:
        return [x for one in lists for x in one] if isinstance(lists[0], list) else lists[0]

    return pytree.tree_map(together, first, *others, is_leaf=lambda x: isinstance(x, list))


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(x, torch.Tensor) for x in value)
