"""What is known of a denoiser's calls, for each structure that it had lately."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from hybridiff_compile.capture.fingerprint import Watch
from hybridiff_compile.ways import Ways

logger = logging.getLogger(__name__)

#: Structures that a denoiser had before, whose programs are kept.
MOST_KEPT = 8


class Structures:
    """Ways by the structure of the denoiser: going back to one costs nothing.

    Attributes:
        ways: of the structure that it has.
    """

    def __init__(
        self,
        none: Callable[[], Ways],
        drop: Callable[[Ways], None],
        are_of_weights: Callable[[Ways], bool],
    ) -> None:
        """Know nothing yet.

        Args:
            none: makes ways of which nothing is known.
            drop: is given ways that are needed no more.
            are_of_weights: whether ways are good only for the weights that they were found with.
        """
        self._none, self._drop, self._are_of_weights = none, drop, are_of_weights
        self.ways = none()
        self._kept: dict[int, Ways] = {}  # the last used last

    def __iter__(self) -> Iterator[Ways]:
        """Those of all structures."""
        return iter((self.ways, *self._kept.values()))

    def turn(self, before: Watch, now: Watch) -> None:
        """The denoiser has changed."""
        last = self.ways
        if self._are_of_weights(last):
            self._drop(last)
            self.ways = self._none()
        if now.structure != before.structure:
            if self.ways is last:
                self._kept[before.structure] = last
            known = self._kept.pop(now.structure, None)
            self.ways = self._none() if known is None else known
            if known is None and now.form == before.form:
                self.ways.take_refusals(last)
        if last.entries and not self.ways.entries:
            logger.warning("the denoiser has changed since it was captured; it is captured again")
        while len(self._kept) > MOST_KEPT:
            logger.info("over %d states of the denoiser: the oldest is forgotten", MOST_KEPT)
            self._drop(self._kept.pop(next(iter(self._kept))))

    def clear(self) -> None:
        """It is another denoiser now."""
        for ways in self:
            self._drop(ways)
        self._kept.clear()
        self.ways = self._none()
