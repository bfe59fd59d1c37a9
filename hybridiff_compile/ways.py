"""The ways in which a denoiser call can be answered, and why a denoiser bears only the plainest."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hybridiff_compile.capture.apart import run_apart
from hybridiff_compile.capture.call import DenoiserCall, Rows, Signature
from hybridiff_compile.capture.differing import of_another_picture
from hybridiff_compile.capture.fingerprint import Watch
from hybridiff_compile.capture.prediction import Form
from hybridiff_compile.capture.state import left_behind
from hybridiff_compile.capture.trace import rows_of_halves
from hybridiff_compile.entry import Entry
from hybridiff_compile.errors import CaptureError, ConfigError
from hybridiff_compile.here import random_numbers_kept, random_numbers_now
from hybridiff_compile.ir import BRANCHES
from hybridiff_compile.lower.device import device_of
from hybridiff_compile.runtime.attach import Attachment


@dataclass(frozen=True)
class AsItIs:
    """One rank runs the call as the pipeline made it, and nothing is known of it.

    Attributes:
        reason: why, as a user is told.
    """

    reason: str


@dataclass(frozen=True)
class OneDevice:
    """This device computes the prediction of all rows.

    Attributes:
        rows: where they are: each half of them in a call of its own. Empty: all in one call.
    """

    rows: Rows

    def compute(
        self, denoiser: nn.Module, call: DenoiserCall, forward: Callable[..., Any]
    ) -> tuple[torch.Tensor, Form]:
        """The prediction of all rows, and the form of the denoiser's answer."""
        name = type(denoiser).__name__
        if self.rows:
            return run_apart(name, call, self.rows, forward)
        positional, keyword = call.arguments
        answer = forward(*positional.values(), **keyword)
        form = Form.of(answer, name)
        return form.pack(answer), form


#: Calls of one run that differ in constants only and are captured; a pipeline that is given other
#: numbers for some of its steps (a scale of skipped layers) has a few.
_MOST_ALIKE = 4

#: With an entry, the ranks compute it.
Way = Entry | OneDevice | AsItIs


class Asked(enum.Enum):
    """What a session wants of a call: of all ranks, of this device half by half, or as a whole."""

    RANKS = enum.auto()
    HALVES = enum.auto()
    WHOLE = enum.auto()


class Ways:
    """The way of each signature, found by trying it once."""

    def __init__(
        self,
        attachment: Attachment,
        trying: Callable[[], AbstractContextManager[nn.Module]],
        capture: Callable[[DenoiserCall, Any], Entry],
    ) -> None:
        """Know nothing yet.

        Args:
            attachment: to the denoiser.
            trying: within it, the denoiser may be run, with its own forward in place.
            capture: makes programs of a call and its answer, and gives them to the ranks.
        """
        self._attachment, self._trying, self._capture = attachment, trying, capture
        self._watch: Watch | None = None
        self._is_changed = False  # the denoiser, between two steps of this run
        self._alike: Counter[Signature] = Counter()  # of this run's calls, by their shapes
        self._found: dict[tuple[Asked, Signature], Way] = {}
        #: By the form of a denoiser that is another one now: what it did not bear.
        self._refused: tuple[int, Mapping[tuple[Asked, Signature], Way]] = (0, {})

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
        self._is_changed = False

    def _is_another_number(self, call: DenoiserCall) -> bool:
        """Whether this run had several calls that differ from this one in constants only."""
        alike = call.shapes()
        self._alike[alike] += 1
        return self._alike[alike] > _MOST_ALIKE

    def add(self, entries: Mapping[Signature, Entry]) -> None:
        """Take programs that were made elsewhere."""
        self._found |= {(Asked.RANKS, signature): entry for signature, entry in entries.items()}

    def clear(self) -> None:
        """Forget what is known: the denoiser is another one."""
        if self._watch is not None:
            refused = {k: way for k, way in self._found.items() if isinstance(way, AsItIs)}
            self._refused = self._watch.form, refused
        self._found.clear()
        self._watch = None

    def look_again(self) -> Watch:
        """Take the denoiser as it is now for what is known."""
        self._watch = Watch(self._attachment.denoiser)
        return self._watch

    def are_current(self) -> bool:
        """Whether the denoiser is still what is known."""
        return not self._found or self._watch is None or self._watch.holds()

    def has_denoiser_changed(self) -> bool:
        """Whether the denoiser was changed between two steps of this run: by a guider, say."""
        self._is_changed = self._is_changed or not self.are_current()
        return self._is_changed

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
        place, answer = (asked, call.signature()), None
        # Where ranks compute, that is asked after the step was launched.
        is_asked_later = isinstance(self._found.get(place), Entry | AsItIs)
        if self._is_changed or (not is_asked_later and self.has_denoiser_changed()):
            return self.while_changed(asked, call), None
        if not self._found:
            form, refused = self._refused
            # One that moves or casts its weights has others at each picture, to no other effect.
            self._found = dict(refused) if self.look_again().form == form else {}
        if place not in self._found:
            self._found[place], answer = self._find(asked, call, batched, strict)
        return self._found[place], answer

    def while_changed(self, asked: Asked, call: DenoiserCall) -> AsItIs:
        """How a call is answered once the denoiser is another one than at the run's begin."""
        known = self._found.get((asked, call.signature()))
        if isinstance(known, AsItIs):
            return known
        return AsItIs(
            "the denoiser was changed between two steps; what was known of it is not used"
        )

    def _find(
        self, asked: Asked, call: DenoiserCall, batched: Callable[[], Any], strict: bool
    ) -> tuple[Way, Any]:
        if reason := uneven(call) or call.opaque():
            return AsItIs(reason), None
        if asked is Asked.WHOLE:
            return OneDevice({}), None
        if known := self.entries.get(call.signature()):
            return OneDevice(known.rows), None
        if self._is_another_number(call):
            return AsItIs(
                "it is given another number at each step, and a program holds one; a tensor in "
                "its place would be an input"
            ), None
        device = device_of(self._attachment.denoiser)
        put_back = random_numbers_now(device)
        with self._trying() as denoiser:
            answer, reason = look(denoiser, call, batched, device)
        try:
            if reason:
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
            return self._capture(call, answer)
        with self._trying() as denoiser:
            return OneDevice(rows_of_halves(denoiser, call, answer))


def uneven(call: DenoiserCall) -> str:
    """Why the rows of a call cannot be halved; "" if they can."""
    if call.rows and call.rows % len(BRANCHES) == 0:
        return ""
    if call.is_listed:
        return "its pictures are a list of tensors, not the rows of one, which ranks share"
    if call.rows == 1:
        return (
            "its batch is 1, and ranks share the rows of a batch. Where the pipeline guides by two "
            "calls a step, or does not guide at all, make several pictures at once "
            "(num_images_per_prompt=2, or two prompts)"
        )
    return (
        f"its batch of {call.rows} has no two equal halves, and ranks share halves. An even number "
        "of pictures has them; that helps unless the rows depend on each other"
    )


def look(
    denoiser: nn.Module, call: DenoiserCall, batched: Callable[[], Any], device: torch.device
) -> tuple[Any, str]:
    """Run a call as the pipeline made it, and see whether the denoiser depends on earlier calls.

    Args:
        denoiser: with its own forward in place.
        call: that is run.
        batched: runs it.
        device: of the denoiser.

    Returns:
        The answer; and why no program can take the denoiser's place, or "".
    """

    def again() -> None:
        positional, keyword = of_another_picture(call).arguments
        with random_numbers_kept(device):
            denoiser(*positional.values(), **keyword)

    with torch.no_grad():
        answer, changing = left_behind(denoiser, batched, again)
    if not changing:
        return answer, ""
    return answer, (
        f"{type(denoiser).__name__} keeps something from call to call ({changing[0]}), as caches "
        "of features do, and a program of one call would freeze it. Switch that off (for a cache "
        'of diffusers: disable_cache()) and take mode="hybrid", which skips what it has measured'
    )


def check_doubled(pipe: Any, call: DenoiserCall) -> None:
    """AsyncDiff pipelines a batch from call to call: each has to be of the same branches.

    Raises:
        ConfigError: the pipeline guides, and not by one batch.
    """
    if getattr(pipe, "do_classifier_free_guidance", True) and not call.is_doubled():
        shape = next((tuple(t.shape) for t in call.tensors().values()), None)
        raise ConfigError(
            "mode='asyncdiff' runs both branches in one batch, and this pipeline's call of shape "
            f"{shape} is no [uncond, cond] batch; use mode='exact' for it."
        )
