"""Which dimension of each argument has the rows of the batch: a second look at another size.

One shape cannot tell: a tensor of 2 rows may be the batch, or a pair of tables. At three times the
batch the denoiser only runs if every tensor that has rows was given three times as many, and no
other was. The look is on FakeTensors: nothing is computed.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses import fake_tensor
from torch.utils import _pytree as pytree

from hybridiff_compile.capture.call import DenoiserCall, Rows, row_dims
from hybridiff_compile.capture.exporting import quietly
from hybridiff_compile.capture.state import kept
from hybridiff_compile.errors import CaptureError
from hybridiff_compile.layout import empty_alike

logger = logging.getLogger(__name__)

#: Not 2, which is often the number of something else, nor a size that broadcasts.
FACTOR = 3
_MOST_TRIES = 24
# What a FakeTensor cannot do, whatever its shape is.
_IMPOSSIBLE = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedFakeTensorException,
    fake_tensor.UnsupportedOperatorException,
    NotImplementedError,  # raised by torch, for an operator without a fake kernel
)


def rows_of(
    denoiser: nn.Module, call: DenoiserCall, answer: Any
) -> tuple[dict[str, int], Exception | None]:
    """Find the dimension of the rows of each tensor argument.

    Args:
        denoiser: with its own forward in place; it is run on FakeTensors and left as it was.
        call: of at least two rows.
        answer: what the denoiser returned to it.

    Returns:
        By name; the noisy picture is first, its dim 0. Where nothing can be run on FakeTensors,
        what the shapes suggest, and why: the caller compares values before it relies on either.
    """
    shapes = _shapes(answer)
    with kept(denoiser), quietly():
        for rows in itertools.islice(_assignments(call), _MOST_TRIES):
            try:
                if _grown(denoiser, call, rows) == [_larger(s, 0) for s in shapes]:
                    return rows, None
            except _IMPOSSIBLE as e:
                return call.rows_by_shape(), e
            except Exception as e:  # whatever a denoiser says of shapes that do not go together
                logger.debug("rows are not %s: %s", rows, e)
    return call.rows_by_shape(), None


def ways_to_halve(
    denoiser: nn.Module, call: DenoiserCall, answer: Any, *, by_values: bool = False
) -> Iterator[Rows]:
    """What to try, the likeliest first; see `rows_of`.

    A table of two rows that is only indexed may grow without being missed. If the likeliest way
    turns out wrong by the values, it is one of those that have no rows.

    Args:
        denoiser, call, answer: as for `rows_of`.
        by_values: a try is cheap, so that many are, where no look can be taken.

    Raises:
        CaptureError: what the shapes suggest did not hold, and no look could be taken.
    """
    rows, impossible = rows_of(denoiser, call, answer)
    yield rows
    if impossible:
        if by_values:
            others = (other for other in _assignments(call) if other != rows)
            yield from itertools.islice(others, _MOST_TRIES)
        raise CaptureError(
            "where the rows of its arguments are was guessed by their shapes, as it cannot be run "
            f"without values ({type(impossible).__name__}: {impossible})"
        ) from impossible
    fewer = _fewest(denoiser, call, answer, rows)
    if fewer != rows:
        yield fewer


def _fewest(
    denoiser: nn.Module, call: DenoiserCall, answer: Any, rows: dict[str, int]
) -> dict[str, int]:
    """The rows without those of every argument that need not have any."""
    _, *others = rows
    wanted = [_larger(shape, 0) for shape in _shapes(answer)]
    with kept(denoiser), quietly():
        for name in others:
            fewer = {n: dim for n, dim in rows.items() if n != name}
            try:
                if _grown(denoiser, call, fewer) == wanted:
                    rows = fewer
            except _IMPOSSIBLE:
                break
            except Exception as e:  # whatever a denoiser says of shapes that do not go together
                logger.debug("%s has rows: %s", name, e)
    return rows


def _assignments(call: DenoiserCall) -> Iterator[dict[str, int]]:
    """Every way to give arguments their rows, those that differ least from the likely one first.

    Tensors of one shape in one argument (the residuals of a ControlNet) have their rows alike.
    """
    tensors = call.tensors()
    first, *others = tensors
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name in others:
        argument = re.sub(r"(_\d+)+$", "", name)
        groups.setdefault((argument, tensors[name].shape), []).append(name)
    ways = [row_dims(tensors[names[0]], call.rows) for names in groups.values()]
    places = range(len(ways))

    def rows(taken: list[int | None]) -> dict[str, int]:
        dims = zip(groups.values(), taken, strict=True)
        by_name = {name: dim for names, dim in dims for name in names}
        return {first: 0} | {n: d for n in others if (d := by_name[n]) is not None}

    for changed in range(3):
        for chosen in itertools.combinations(places, changed):
            for other in itertools.product(*(ways[i][1:] for i in chosen)):
                taken = [way[0] for way in ways]
                for i, dim in zip(chosen, other, strict=True):
                    taken[i] = dim
                yield rows(taken)
        if not changed:  # a video's text and the residuals of its ControlNets, all by frames
            yield rows([0 if 0 in way else way[0] for way in ways])


def _grown(denoiser: nn.Module, call: DenoiserCall, rows: Rows) -> list[torch.Size]:
    """The shapes that the denoiser returns to a call of more rows."""
    mode = fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)

    def larger(name: str, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if name not in rows:
            return mode.from_tensor(leaf)
        return empty_alike(leaf, _larger(leaf.shape, rows[name]))

    with mode, torch.no_grad():
        leaves = itertools.starmap(larger, zip(call.names, call.leaves, strict=True))
        grown = DenoiserCall(call.names, tuple(leaves), call.spec)
        return _shapes(grown.given_to(denoiser))


def _larger(shape: torch.Size, dim: int) -> torch.Size:
    return torch.Size(n * FACTOR if d == dim else n for d, n in enumerate(shape))


def _shapes(answer: Any) -> list[torch.Size]:
    return [x.shape for x in pytree.tree_leaves(answer) if isinstance(x, torch.Tensor)]
