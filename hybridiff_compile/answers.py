"""The answers to the denoiser calls of one run: where capture, passes and runtime meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hybridiff_compile.capture import listed
from hybridiff_compile.capture.branches import Branches
from hybridiff_compile.capture.call import DenoiserCall
from hybridiff_compile.config import Config, SwitchSettings
from hybridiff_compile.denoiser import Denoiser
from hybridiff_compile.entry import Entry
from hybridiff_compile.here import Here, Prepared
from hybridiff_compile.looking import check_doubled, uneven
from hybridiff_compile.runtime import sampler
from hybridiff_compile.runtime.driver import threads
from hybridiff_compile.runtime.run import Run
from hybridiff_compile.way import AsItIs, OneDevice


class Answers:
    """Answers the denoiser calls of one run.

    Args:
        pipe: whose call is under way.
        run: its bookkeeping.
        config, family: how it switches.
        here: how this thread's calls are to be answered.
        say: tells the user something, once.
    """

    def __init__(
        self,
        pipe: Any,
        run: Run,
        config: Config,
        family: SwitchSettings,
        here: Here,
        say: Callable[[str], None],
    ) -> None:
        self._pipe, self._run, self._here, self._say = pipe, run, here, say
        self._config, self._family = config, family
        self._is_counted = False  # the step under way, as one of the run's

    def answer(
        self,
        denoiser: Denoiser,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Answer one denoiser call, in place of the denoiser's own `forward`."""
        run, calls = self._run, denoiser.calls
        call = DenoiserCall.of(denoiser.route.parameters, args, kwargs)
        own = torch.get_num_threads()

        def as_asked() -> Any:
            with threads(denoiser.ranks.device, own):  # in the midst of trying, which has one
                return forward(*args, **kwargs)

        if call.wants_gradient:  # in a callback, say; not a step of the run
            self.one_rank("denoiser call", "its gradient is asked for, and programs have none")
            return as_asked()
        if not calls.begins_step(call) and denoiser.changes.have_come():
            # A guider has set it otherwise for this call of the step: it is not one of the others.
            self.one_rank("denoiser call", denoiser.ways.while_changed(Branches((call,))).reason)
            calls.note_other()
            return as_asked()
        if calls.awaits(call):
            return calls.answer()
        if calls.surprise:
            self._withdraw()
            self._say(f"one rank runs a denoiser call: {calls.not_as_assumed}")
        if not calls.under_way:
            self._begin(denoiser, call)
        calls.note(call)
        if calls.is_first:
            self._is_counted = False
            denoiser.learn(calls.last_known)
        is_foreseen, answer = self._share(denoiser, call, as_asked, forward)
        if not is_foreseen:
            run.unguided += calls.is_first
            # Beside a prediction that was shared; a step that is all as it is is a regular one.
            run.extra += not calls.is_first and run.returned is not None
        return answer

    def _share(
        self,
        denoiser: Denoiser,
        call: DenoiserCall,
        as_asked: Callable[[], Any],
        forward: Callable[..., Any],
    ) -> tuple[bool, Any]:
        """Answer a call that was not awaited; one that begins a step, with all calls of that.

        Returns:
            Whether it is a step of the run, and the answer.
        """
        run, step = self._run, denoiser.calls.assumed(call)
        if self._here.is_dry and self._config.gpus == 1:
            self.one_rank("denoiser call", "gpus=1 runs the denoiser as it is")
        is_list, mode = listed.has_several(call), self._config.mode
        has_steps = call.parts > 1 or is_list or step is not None or mode == "hybrid"
        if has_steps and not (run.done or self._here.is_apart):
            # Before anything is traced: it may be refused.
            run.wanted = self._config.switching(self._family, sampler.num_steps(self._pipe))
        if step is not None and (answers := self._foreseen(denoiser, step, forward)) is not None:
            return bool(answers), answers[0] if answers else as_asked()
        if not (denoiser.calls.is_first or denoiser.calls.are_apart):
            if self._is_counted:  # as a step of one call
                self._withdraw()
            return False, denoiser.ways.as_it_is(call, as_asked)
        is_whole = denoiser.is_whole(call)
        if not (is_whole or (denoiser.calls.are_apart and (call.parts > 1 or is_list))):
            if reason := denoiser.calls.why_unforeseen:
                self.one_rank("pipeline's calls, one by one", reason)
            return False, denoiser.ways.as_it_is(call, as_asked)
        way, answer = denoiser.way(call, as_asked, is_whole=is_whole)
        if not isinstance(way, AsItIs):
            step = listed.parts(call) if is_list else Branches((call,))
            answers = self._compute(denoiser, step, way, forward)
            return bool(answers), listed.merged(answers) if answers else as_asked()
        self.one_rank("denoiser call", way.reason)
        return False, as_asked() if answer is None else answer

    def _foreseen(
        self, denoiser: Denoiser, step: Branches, forward: Callable[..., Any]
    ) -> list[Any] | None:
        """The answers to all calls of a step; [] as in `_compute`; None if one by one."""
        way = denoiser.way_of_step(step)
        if isinstance(way, AsItIs):
            self.one_rank("pipeline's calls, one by one", way.reason)
            denoiser.calls.are_apart = True
            return None
        if answers := self._compute(denoiser, step, way, forward):
            denoiser.calls.answered(step, answers)
        return answers

    def _compute(
        self,
        denoiser: Denoiser,
        step: Branches,
        way: Entry | OneDevice,
        forward: Callable[..., Any],
    ) -> list[Any]:
        """The answers to all calls of a step; [] if they are those of another denoiser."""
        run = self._run
        if not run.done:
            run.begin(run.wanted, self._pipe)
        is_alone = isinstance(way, OneDevice) and len(step.calls) == 1 and self._config.gpus > 1
        if is_alone and (reason := uneven(step.calls[0])):
            self.one_rank("denoiser", reason)
        if self._here.is_dry:
            raise Prepared
        is_leaf = isinstance(way, Entry) and bool(way.not_exported)
        if is_leaf and self._has_changed(denoiser, step):
            return []
        answers = denoiser.compute(run, step, way, forward)
        if isinstance(way, Entry) and (told := denoiser.unforeseen(step, way)):
            run.withdraw()
            self.one_rank("denoiser call", told)
            return []
        if is_leaf:
            denoiser.changes.take()  # by its own call, which made a table for later ones
        elif isinstance(way, OneDevice):
            denoiser.ways.take_tables(step, way)
        # Asked only after a step of ranks was launched: a GPU computes meanwhile.
        elif self._has_changed(denoiser, step):
            run.withdraw()
            return []
        self._is_counted = True
        return answers

    def _has_changed(self, denoiser: Denoiser, step: Branches) -> bool:
        """Whether a denoiser is another one than at the run's begin; says so."""
        if not denoiser.changes.have_come():
            return False
        self.one_rank("denoiser call", denoiser.ways.while_changed(step).reason)
        return True

    def _withdraw(self) -> None:
        """The step under way is no step of the run: its calls are answered as they are."""
        self._run.withdraw()
        self._run.unguided += 1
        self._is_counted = False

    def _begin(self, denoiser: Denoiser, call: DenoiserCall) -> None:
        """At the first call of a run: some pipelines set their denoiser otherwise for each."""
        denoiser.meet()
        if self._config.mode == "asyncdiff":
            check_doubled(self._pipe, call)

    def one_rank(self, what: str, reason: str) -> None:
        """Say once why only one rank runs something; end a dry call."""
        if self._here.is_dry:
            self._say(f"there is nothing to prepare: {reason}")
            raise Prepared
        self._say(f"one rank runs this {what}: {reason}")
