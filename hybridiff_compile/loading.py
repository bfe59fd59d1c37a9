"""Captured entries on their way to the ranks, which may not bear them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any

import torch

from hybridiff_compile.capture.apart import check_same
from hybridiff_compile.capture.branches import Branches
from hybridiff_compile.entry import Entry
from hybridiff_compile.errors import CaptureError
from hybridiff_compile.ir import Phase
from hybridiff_compile.ranks import Ranks
from hybridiff_compile.runtime.rank import TRIAL
from hybridiff_compile.runtime.route import Route

logger = logging.getLogger(__name__)


class Loading:
    """Loads the entries of one denoiser.

    Attributes:
        refused: why another process cannot call the denoiser, if that was tried.
    """

    def __init__(self, route: Route, ranks: Ranks, is_compiled: bool) -> None:
        self._route, self._ranks, self._is_compiled = route, ranks, is_compiled
        self.refused = ""

    def load(
        self, entry: Entry, step: Branches, answers: Sequence[Any], known: Collection[Entry]
    ) -> None:
        """Give an entry to the ranks. What is compiled, or called by another process, is tried.

        Args:
            entry: of the step.
            step: its calls.
            answers: what the denoiser returned to each.
            known: entries that a new worker is given as well.

        Raises:
            CaptureError: the ranks answer otherwise than the denoiser did.
        """
        if entry.not_exported:
            self._load_leaf(entry, step, answers, known)
            level = logging.WARNING if self._is_compiled else logging.INFO
            text = "both ranks call the denoiser as it is; nothing of it is compiled: %s"
            logger.log(level, text, entry.not_exported)
            return
        self._ranks.add(entry, known)
        if self._is_compiled:
            self._try(entry, step, answers, known)

    def _load_leaf(
        self, entry: Entry, step: Branches, answers: Sequence[Any], known: Collection[Entry]
    ) -> None:
        """The same of a denoiser that is no graph, which another process may not bear."""
        if self.refused:
            raise CaptureError(self.refused)
        try:
            if not self._ranks.connect(known).fleet.is_own:
                raise RuntimeError("a launcher started it, and it cannot be started again")
            self._ranks.add(entry, known)
            self._try(entry, step, answers, known)
        except Exception as e:  # whatever its parts say of being pickled, or a worker of its code
            name = type(self._route.denoiser).__name__
            self.refused = (
                f"the process of another rank cannot call {name} ({type(e).__name__}: {e}), and "
                f"{entry.not_exported}"
            )
            raise CaptureError(self.refused) from e

    def _try(
        self, entry: Entry, step: Branches, answers: Sequence[Any], known: Collection[Entry]
    ) -> None:
        driver = self._ranks.connect(known)
        result = driver.step(entry.key, Phase.SERIAL, TRIAL, entry.parts(step).inputs())
        if entry.not_exported and (told := driver.told()):
            raise CaptureError(told)
        expected = torch.cat([entry.form.pack(answer) for answer in answers])
        try:
            check_same(result, expected, type(self._route.denoiser).__name__, together=True)
        except CaptureError:
            self._ranks.forget([entry])
            raise
