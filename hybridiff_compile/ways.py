"""How each denoiser call is answered, and why a denoiser bears only the plainest way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from hybridiff_compile.capture import listed
from hybridiff_compile.capture.apart import check_listed
from hybridiff_compile.capture.branches import Branches
from hybridiff_compile.capture.call import DenoiserCall, Signature
from hybridiff_compile.capture.state import kept
from hybridiff_compile.capture.trace import capture_taken, rows_of_halves
from hybridiff_compile.changes import Changes
from hybridiff_compile.entry import Entry
from hybridiff_compile.errors import CaptureError
from hybridiff_compile.looking import MAKE_TABLES, Looks, uneven
from hybridiff_compile.lower.device import device_of
from hybridiff_compile.randomness import random_numbers_kept, random_numbers_now
from hybridiff_compile.runtime.route import Route
from hybridiff_compile.way import AsItIs, Asked, OneDevice, Way

#: Calls of one run that differ in constants only and are captured; a pipeline that is given other
#: numbers for some of its steps (a scale of skipped layers) has a few.
_MOST_ALIKE = 4


class Ways:
    """The way of each signature, found by trying it once."""

    def __init__(
        self,
        route: Route,
        changes: Changes,
        trying: Callable[[], AbstractContextManager[nn.Module]],
        capture: Callable[[Branches, Sequence[Any]], Entry],
    ) -> None:
        """Know nothing yet.

        Args:
            route: to the denoiser.
            changes: of it.
            trying: within it, the denoiser may be run, with its own forward in place.
            capture: makes programs of a step's calls and their answers, and gives them to the
                ranks.
        """
        self._route, self._changes = route, changes
        self._trying, self._capture = trying, capture
        self._alike: Counter[Signature] = Counter()  # of this run's calls, by their shapes
        self._found: dict[tuple[Asked, Signature], Way] = {}
        self._as_they_are: Counter[Signature] = Counter()  # calls that were answered so
        self._looks = Looks(trying)

    def __len__(self) -> int:
        return len(self._found)

    @property
    def entries(self) -> dict[Signature, Entry]:
        """Those that have programs."""
        found = self._found.items()
        return {signature: way for (_, signature), way in found if isinstance(way, Entry)}

    def begin(self) -> None:
        """A run begins."""
        self._alike.clear()
        self._changes.begin()

    def _is_another_number(self, call: DenoiserCall) -> bool:
        """Whether this run had several calls that differ from this one in constants only."""
        alike = call.shapes()
        self._alike[alike] += 1
        return self._alike[alike] > _MOST_ALIKE

    def add(self, entries: Mapping[Signature, Entry]) -> None:
        """Take programs that were made elsewhere."""
        self._found |= {(Asked.RANKS, signature): entry for signature, entry in entries.items()}

    def take_refusals(self, other: Ways) -> None:
        """Take what a denoiser of the same form did not bear.

        One that moves or casts its weights has others at each picture, to no other effect.
        """
        self._found |= {k: way for k, way in other._found.items() if isinstance(way, AsItIs)}

    def refuse(self, step: Branches, reason: str) -> None:
        """One rank runs such calls from now on."""
        self._found |= {(asked, _place(step)): AsItIs(reason) for asked in Asked}
        self._changes.take()

    def take_tables(self, step: Branches, way: OneDevice) -> None:
        """Take what the denoiser's own calls of a step changed, if it is tables for later ones.

        If it is more, such calls are answered as the pipeline asks from now on.

        Raises:
            CaptureError: it is more, and the calls were others than the pipeline's.
        """
        before = self._changes.known
        if before is None or before.holds():
            return
        reason = self._looks.of_changes(step, before, self._changes.look_again())
        if reason:
            self.refuse(step, reason)
        if reason and way.rows:
            raise CaptureError(
                f"{reason}. It began to do so within a picture, whose calls were made part by "
                "part: that one is lost, the next ones are made as the pipeline asks."
            )

    def of(
        self, asked: Asked, call: DenoiserCall, batched: Callable[[], Any], *, strict: bool
    ) -> tuple[Way, Any]:
        """How a call is answered; and its answer, if a try gave that.

        Args:
            asked: what is wanted.
            call: of the denoiser.
            batched: runs it as the pipeline made it.
            strict: one rank alone will not do.

        Raises:
            CaptureError: strict, and the call cannot be captured.
        """
        step, answer = Branches((call,)), None
        place = asked, _place(step)
        # Where ranks compute, that is asked after the step was launched.
        is_asked_later = isinstance(self._found.get(place), Entry | AsItIs)
        if not is_asked_later and self._changes.have_come():
            return self.while_changed(step), None
        if place not in self._found:
            self._found[place], answer = self._find(asked, call, batched, strict)
        return self._found[place], answer

    def as_it_is(self, call: DenoiserCall, batched: Callable[[], Any]) -> Any:
        """The answer of a call that nothing is known of yet; whether it has state is known then."""
        signature = call.signature()
        self._as_they_are[signature] += 1
        is_late = self._as_they_are[signature] > MAKE_TABLES
        if self._looks.known(call) or is_late or self._changes.have_come():
            return batched()
        is_known = self._looks.known(call) is not None
        answer = batched() if is_known else self._looks.answer(call, batched)
        self._changes.take()  # by that call itself, which made a table for later ones
        return answer

    def of_step(self, asked: Asked, step: Branches, *, strict: bool) -> Way:
        """How all calls of a step are answered, at the first of them.

        Raises:
            CaptureError: strict, and they cannot be captured.
        """
        place = asked, _place(step)
        known = self._found.get(place)
        if not isinstance(known, Entry | AsItIs) and self._changes.have_come():
            return self.while_changed(step)
        if known is None:
            try:
                known = self._found[place] = self._find_step(asked, step)
            except CaptureError as e:
                if strict:
                    raise
                known = self._found[place] = AsItIs(str(e))
        return known

    def of_list(
        self, asked: Asked, call: DenoiserCall, batched: Callable[[], Any], *, strict: bool
    ) -> tuple[Way, Any]:
        """How a call of several pictures in a list is answered; see `of`."""
        step = listed.parts(call)
        if (asked, _place(step)) in self._found or self._changes.have_come():
            return self.of_step(asked, step, strict=strict), None
        answer = self.as_it_is(call, batched)
        with random_numbers_kept(device_of(self._route.denoiser)):
            reason = self._looks.known(call) or self._not_together(call, step, answer)
            self._looks.note(step, reason)
            return self.of_step(asked, step, strict=strict), answer

    def _not_together(self, call: DenoiserCall, step: Branches, answer: Any) -> str:
        """Why the parts of a list, computed apart, are not the whole; "" if they are."""
        try:
            with self._trying() as denoiser, kept(denoiser), torch.no_grad():
                check_listed(denoiser, call, step, answer)
        except CaptureError as e:
            return str(e)
        return ""

    def _find_step(self, asked: Asked, step: Branches) -> Way:
        with random_numbers_kept(device_of(self._route.denoiser)):
            for call in step.calls:
                if reason := call.opaque() or self._looks.reason(call):
                    return AsItIs(reason)
            if asked is not Asked.RANKS:
                return OneDevice({})
            with self._trying() as denoiser, kept(denoiser), torch.no_grad():
                answers = [call.given_to(denoiser) for call in step.calls]
            return self._capture(step, answers)

    def while_changed(self, step: Branches) -> AsItIs:
        """How calls are answered once the denoiser is another one than at the run's begin."""
        for asked in Asked:
            known = self._found.get((asked, _place(step)))
            if isinstance(known, AsItIs):
                return known
        return AsItIs(
            "the denoiser was changed within this run, as guiders do that skip layers for a call; "
            "what was known of it is not used"
        )

    def _find(
        self, asked: Asked, call: DenoiserCall, batched: Callable[[], Any], strict: bool
    ) -> tuple[Way, Any]:
        if asked is Asked.WHOLE and call.rows:
            reason = self._looks.reason(call)
            return AsItIs(reason) if reason else OneDevice({}), None
        if reason := uneven(call) or call.opaque():
            return AsItIs(reason), None
        known = self.entries.get(call.signature())
        if known and not known.is_taken:
            return OneDevice(known.rows), None
        if self._is_another_number(call):
            return AsItIs(
                "it is given another number at each step, and a program holds one; a tensor in "
                "its place would be an input"
            ), None
        device = device_of(self._route.denoiser)
        put_back = random_numbers_now(device)
        answer = self._looks.answer(call, batched)
        try:
            if reason := self._looks.known(call):
                raise CaptureError(reason)
            with random_numbers_kept(device):
                way = self._shared(asked, call, answer)
        except CaptureError as e:
            if strict:
                raise
            # It was run, which it and the random numbers remember: that answer is this call's.
            return AsItIs(str(e)), answer
        put_back()  # it is computed by the way
        return way, None

    def _shared(self, asked: Asked, call: DenoiserCall, answer: Any) -> Way:
        if asked is Asked.RANKS:
            return self._capture(Branches((call,)), [answer])
        with self._trying() as denoiser:
            try:
                return OneDevice(rows_of_halves(denoiser, call, answer))
            except CaptureError as e:
                return OneDevice({}, capture_taken(denoiser, call, answer, e))


def _place(step: Branches) -> Signature:
    """By what a step is known: the one call that it is, or all of its calls."""
    first, *others = step.calls
    return step.signature() if others else first.signature()
