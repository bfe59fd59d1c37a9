"""Whether a denoiser is still what is known of it."""

from __future__ import annotations

from hybridiff_compile.capture.fingerprint import Watch
from hybridiff_compile.runtime.route import Route

#: Calls in a row with another denoiser, after which it is taken for that for the rest of a run.
_MOST = 8


class Changes:
    """Watches a denoiser.

    Attributes:
        known: what is known of it is of the denoiser as it was then; None if nothing is known.
    """

    def __init__(self, route: Route) -> None:
        self.known: Watch | None = None
        self._route = route
        self._in_a_row = 0  # calls of this run in which it was another one

    def begin(self) -> None:
        """A run begins."""
        self._in_a_row = 0

    def look_again(self) -> Watch:
        """Take the denoiser as it is now for what is known."""
        self.known = Watch(self._route.denoiser)
        return self.known

    def take(self) -> None:
        """Take what was changed meanwhile, by no one else, for what is known."""
        if not self.are_none():
            self.look_again()

    def are_none(self) -> bool:
        """Whether the denoiser is still what is known."""
        return self.known is None or self.known.holds()

    def have_come(self) -> bool:
        """Whether the denoiser was changed since the run began: by a guider, for a call, say.

        One that stays another one is not looked at again.
        """
        if self._in_a_row < _MOST:
            self._in_a_row = 0 if self.are_none() else self._in_a_row + 1
        return self._in_a_row > 0
