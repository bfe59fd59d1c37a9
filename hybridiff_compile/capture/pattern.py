"""How a pipeline guides, found from its denoiser calls alone: how many a step, and what they share.

Some pipelines make one call of all branches, some make a call for each. Of the latter, the second
step knows all of its calls at the first one: what they had in common in the last step (the noisy
picture, the time) is what the first call is given now, and the rest (text) is what it was. That is
an assumption, and each call is compared with it before anyone is given its answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from hybridiff_compile.capture.branches import Branches
from hybridiff_compile.capture.call import DenoiserCall, constant_text
from hybridiff_compile.layout import Kept, is_same, writes

# A run whose calls were other than assumed so many times is no longer foreseen.
_MOST_SURPRISES = 2


# After so many steps, a scheduler that has told of none tells of none.
_ENOUGH = 4

# So many steps of a run that began otherwise than those before are no change of size, say.
_MOST_STRANGE = 3


def other_argument(before: DenoiserCall, call: DenoiserCall) -> str:
    """The first argument that has another shape, or is another number; "" if none is."""
    if call.names != before.names:
        return next(iter({*call.names} ^ {*before.names}), "the nesting of its arguments")
    pairs = zip(call.names, before.signature()[1], call.signature()[1], strict=True)
    return next((name for name, one, other in pairs if one != other), "")


@dataclass(frozen=True)
class Held:
    """A call, and how often its tensors had been written when it was made."""

    call: DenoiserCall
    kept: tuple[Kept | None, ...]

    @classmethod
    def of(cls, call: DenoiserCall) -> Held:
        """Of a call that is under way."""
        return cls(
            call, tuple(_kept(x) if isinstance(x, torch.Tensor) else None for x in call.leaves)
        )

    def same(self, call: DenoiserCall) -> frozenset[str]:
        """Names of the arguments in which another call is as this one was.

        Compared by identity first. By value, that waits for the device.
        """
        if call.names != self.call.names or call.spec != self.call.spec:
            before = dict(
                zip(self.call.names, zip(self.call.leaves, self.kept, strict=True), strict=True)
            )
            pairs = [
                (n, *before[n], x)
                for n, x in zip(call.names, call.leaves, strict=True)
                if n in before
            ]
        else:
            pairs = list(zip(call.names, self.call.leaves, self.kept, call.leaves, strict=True))
        return frozenset(name for name, *rest in pairs if _same(*rest))

    def difference(self, call: DenoiserCall) -> str:
        """The first argument in which a call is another one than this; "" if it is the same."""
        if call.names != self.call.names or call.spec != self.call.spec:
            return next(iter({*call.names} ^ {*self.call.names}), "the nesting of its arguments")
        same = self.same(call)
        return next((name for name in call.names if name not in same), "")

    def has_picture_of(self, call: DenoiserCall) -> bool:
        """Whether another call is given the same noisy picture; False if there is none."""
        name, now = next(iter(call.tensors().items()), ("", None))
        pairs = zip(self.call.names, self.call.leaves, self.kept, strict=True)
        return any(_same(leaf, kept, now) for n, leaf, kept in pairs if n == name)


class StepCalls:
    """The denoiser calls of one run, by the steps that they belong to.

    Attributes:
        surprise: the argument in which the last call was another one than assumed; "" if it was
            not.
        last: all calls of the step before.
        are_apart: no step is foreseen: each call is answered by itself.
        have_moved: the scheduler's last step had calls of several noisy pictures; each begins one.
        strange: the argument in which steps began otherwise than those before, several times; "".
    """

    def __init__(self) -> None:
        self.surprise = self.strange = ""
        self.last: tuple[DenoiserCall, ...] = ()
        self.are_apart = self.have_moved = False
        self._surprises = 0
        self._first: Held | None = None  # of the step under way
        self._calls: list[DenoiserCall] = []  # of it, so far
        self._shared: list[frozenset[str]] = []  # what each has in common with the first
        self._last_shared: tuple[frozenset[str], ...] = ()
        self._awaited: list[tuple[Held, Any]] = []  # calls that are answered already
        self._is_over, self._has_ended = True, False  # the step; any step, as the scheduler tells
        self._others, self._last_others = 0, 0  # calls that are not of the step's own
        self._stranger = self._begun = 0  # steps that began otherwise; all of them
        self._pictures = 0  # since the scheduler's last step

    def end_step(self) -> None:
        """The scheduler was given what the pipeline made of the calls so far."""
        self._is_over = self._has_ended = True
        self.have_moved, self._pictures = self._pictures > 1, 0

    @property
    def under_way(self) -> Sequence[DenoiserCall]:
        """The calls of the step under way, so far."""
        return self._calls

    @property
    def is_first(self) -> bool:
        """Whether the call that was noted last begins a step."""
        return len(self._calls) == 1

    @property
    def are_lone(self) -> bool:
        """Whether a call that begins a step is known not to be one of several of other pictures."""
        return not self.have_moved and (self._has_ended or self._begun > _ENOUGH)

    @property
    def last_known(self) -> tuple[DenoiserCall, ...]:
        """`last`, if that is all that there was of that step; otherwise ()."""
        return () if self._last_others else self.last

    @property
    def known(self) -> tuple[DenoiserCall, ...]:
        """The same of the step under way."""
        return () if self._others else tuple(self._calls)

    @property
    def not_as_assumed(self) -> str:
        """What was surprising, in words."""
        return (
            "the calls of a step are foreseen from those of the step before, and this one was "
            f"given another {self.surprise}"
        )

    @property
    def why_unforeseen(self) -> str:
        """Why the calls of this run's steps are not foreseen; "" if that is not known."""
        if self.have_moved:
            return (
                "each of a step's calls is of another noisy picture, and a later one is not known "
                "before it is made"
            )
        if self.strange:
            return (
                f"its argument {self.strange} is another one at each step, and a program is made "
                "for one; a tensor of one shape in its place would be an input"
            )
        return ""

    def give_up(self, surprise: str) -> None:
        """Await no call of this step any more, as something is not as assumed."""
        self._awaited.clear()
        self.surprise = surprise
        self._surprises += 1
        self.are_apart = self._surprises >= _MOST_SURPRISES

    def begins_step(self, call: DenoiserCall) -> bool:
        """Whether a call is the first one of a step: after a scheduler's, or of another picture."""
        if self._is_over or self._first is None:
            return True
        return not self._first.has_picture_of(call)

    def awaits(self, call: DenoiserCall) -> bool:
        """Whether a call is the next one that was assumed. If it is another, none is awaited."""
        self.surprise = ""
        if self._is_over:
            self._awaited.clear()  # a call that was assumed, and did not come
        if not self._awaited:
            return False
        if not (name := self._awaited[0][0].difference(call)):
            return True
        if self.begins_step(call):
            self._awaited.clear()
        else:
            self.give_up(name)
        return False

    def answer(self) -> Any:
        """The answer of the call that was awaited."""
        held, answer = self._awaited.pop(0)
        self._calls.append(held.call)
        self._shared.append(self._last_shared[len(self._shared)])
        return answer

    def note_other(self) -> None:
        """Take a call within a step that is of another denoiser, so to say; see `answers`."""
        self._others += 1

    def note(self, call: DenoiserCall) -> None:
        """Take a call that is not awaited."""
        if self.begins_step(call):
            self.have_moved |= self._has_ended and not self._is_over
            self._pictures += 1
            self.last, self._last_shared = tuple(self._calls), tuple(self._shared)
            self._others, self._last_others = 0, self._others
            self._begun += 1
            self._first, self._calls, self._shared = Held.of(call), [call], [frozenset(call.names)]
            self._is_over = False
            return
        assert self._first is not None
        self._calls.append(call)
        self._shared.append(self._first.same(call))

    def assumed(self, call: DenoiserCall) -> Branches | None:
        """All calls of the step that a call begins; None if that is one, or is not known.

        Args:
            call: that was noted last.
        """
        first, *others = self.last or (None,)
        if not (self.is_first and others and first) or self.are_apart:
            return None
        if call.signature() != first.signature():
            self._stranger += 1
            if self._stranger >= _MOST_STRANGE:
                self.strange = other_argument(first, call)
            return None
        now = dict(zip(call.names, call.leaves, strict=True))
        calls = [call]
        for other, shared in zip(others, self._last_shared[1:], strict=True):
            pairs = zip(other.names, other.leaves, strict=True)
            leaves = (now[name] if name in shared else leaf for name, leaf in pairs)
            calls.append(replace(other, leaves=tuple(leaves)))
        return Branches(tuple(calls))

    def answered(self, step: Branches, answers: Sequence[Any]) -> None:
        """Take the answers of a step's calls, of which the first one is given out now."""
        pairs = zip(step.calls[1:], answers[1:], strict=True)
        self._awaited = [(Held.of(call), answer) for call, answer in pairs]


def _kept(tensor: torch.Tensor) -> Kept:
    count = writes(tensor)
    # Where torch does not count, only a copy can tell whether it was written.
    return (tensor.clone() if count is None else tensor), count


def _same(before: Any, kept: Kept | None, now: Any) -> bool:
    if not isinstance(now, torch.Tensor) or kept is None:
        return type(before) is type(now) and constant_text(before) == constant_text(now)
    return bool(is_same(kept, now))
