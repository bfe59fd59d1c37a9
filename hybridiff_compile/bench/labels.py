"""Where labels go beside the points of a plot, so that none covers another or a point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import hypot

Point = tuple[float, float]
#: Left, bottom, right, top.
Box = tuple[float, float, float, float]

_GAP, _RADIUS = 6.0, 4.0  # from a point's middle to its label; of a point


def place(
    anchors: Sequence[Point], sizes: Sequence[Point], bounds: Box, line: Sequence[Point] = ()
) -> list[Point | None]:
    """Choose a place for each label, the first ones first.

    Args:
        anchors: middles of the points.
        sizes: width and height of each label, in the same unit.
        bounds: that no label may leave.
        line: corners of a line that no label may lie on.

    Returns:
        The lower left corner of each label; None where every place beside its point is taken.
    """
    taken = [(x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS) for x, y in anchors]
    taken += [(x, y, x, y) for x, y in _along(line)]
    found: list[Point | None] = []
    for anchor, (width, height) in zip(anchors, sizes, strict=True):
        boxes = ((x, y, x + width, y + height) for x, y in _corners(anchor, width, height))
        free = (b for b in boxes if _within(b, bounds) and not any(_meet(b, t) for t in taken))
        box = next(free, None)
        found.append(None if box is None else box[:2])
        if box is not None:
            taken.append(box)
    return found


def _along(line: Sequence[Point]) -> Iterator[Point]:
    """Points of a line, closer than a label is high."""
    for (x, y), (to_x, to_y) in pairwise(line):
        count = max(1, round(hypot(to_x - x, to_y - y) / _RADIUS))
        for i in range(count + 1):
            yield x + (to_x - x) * i / count, y + (to_y - y) * i / count


def _corners(anchor: Point, width: float, height: float) -> Iterator[Point]:
    """Lower left corners beside a point, the best one first: right, left, above, below."""
    x, y = anchor
    right, left = x + _GAP, x - _GAP - width
    for shift in (0.0, 0.6, -0.6):
        yield right, y - height / 2 + shift * height
        yield left, y - height / 2 + shift * height
    for column in (right - _GAP, left + _GAP, x - width / 2):
        yield column, y + _GAP
        yield column, y - _GAP - height


def _within(box: Box, bounds: Box) -> bool:
    return (
        bounds[0] <= box[0] and bounds[1] <= box[1] and box[2] <= bounds[2] and box[3] <= bounds[3]
    )


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
