"""From one denoiser call to a prediction: the place where capture, passes and runtime meet."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from hybridiff_compile import arguments
from hybridiff_compile.capture.branches import Branches
from hybridiff_compile.capture.call import DenoiserCall, Signature
from hybridiff_compile.capture.pattern import StepCalls
from hybridiff_compile.config import Config, SwitchSettings
from hybridiff_compile.denoiser import Denoiser
from hybridiff_compile.entry import Entry
from hybridiff_compile.errors import ConfigError, UnsupportedPipelineError
from hybridiff_compile.here import Here, Prepared
from hybridiff_compile.looking import check_doubled, uneven
from hybridiff_compile.lower.device import device_of
from hybridiff_compile.ranks import Ranks
from hybridiff_compile.runtime import attach, memory, sampler, traffic
from hybridiff_compile.runtime.driver import threads
from hybridiff_compile.runtime.fleet import Start
from hybridiff_compile.runtime.report import RunReport
from hybridiff_compile.runtime.run import Run
from hybridiff_compile.runtime.watching import watched
from hybridiff_compile.ways import AsItIs, OneDevice

logger = logging.getLogger(__name__)

#: A package's programs by call, and what gives the denoiser its own weights back.
Packaged = tuple[Mapping[Signature, Entry], Callable[[], None]]


class Session:
    """Serves the denoiser calls of one pipeline."""

    def __init__(
        self,
        pipe: Any,
        denoiser: nn.Module,
        config: Config,
        family: SwitchSettings,
        start: Start,
        packaged: Callable[[], Packaged] | None = None,
    ) -> None:
        self.report: RunReport | None = None
        #: Undoes what a package did to the denoiser's weights, once nothing is attached.
        self.give_back: Callable[[], None] = lambda: None
        self.here = Here()
        self._pipe, self.config, self._family = pipe, config, family
        self.under_way: Run | None = None
        self._owner: int | None = None
        self._said: set[str] = set()
        self._lock = threading.Lock()
        self._calls = StepCalls()
        self.attachment = attach.Attachment(pipe, denoiser, self.run)
        is_packaged = packaged is not None
        self.denoiser = Denoiser(self.attachment, self.here, config, start, is_packaged)
        try:
            if packaged is not None:  # now that nothing stands in the way: it writes the weights
                entries, self.give_back = packaged()
                self.denoiser.ways.add(entries)
            if config.gpus > 1:
                self.ranks.connect(self.entries.values())
        except BaseException:
            self.attachment.detach()
            self.give_back()
            raise

    @contextmanager
    def run(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Around one call of the pipeline; calls from several threads take turns.

        Args:
            args, kwargs: of the call.

        Raises:
            ConfigError: called under autocast, with arguments that give no picture, or from a
                callback of a call that is under way, of this pipeline or of one with the same
                denoiser.
            ClosedError: in a fork of the process that the worker serves.
            PackageError: the pipeline's denoiser is no longer the one that a package was for.
        """
        self.ranks.check_fork()
        if self._owner == threading.get_ident() or self.attachment.has_turn:
            raise ConfigError(
                "the model is called from its own callback, or from that of a pipeline with the "
                "same denoiser; call it after the run."
            )
        arguments.check_call(self._pipe, args, kwargs)
        attach.refuse_autocast(self.ranks.device)
        with self._lock, self.here.random_numbers_kept(self.ranks.device):
            self._owner = threading.get_ident()
            try:
                before = traffic.before(self.ranks.driver)
                unfit = self._follow()
                if self.ranks.driver is not None:
                    self.ranks.driver.agree()
                self._calls = StepCalls()
                self.under_way = run = Run(step_ends=self._calls.end_step)
                self.denoiser.ways.begin()
                seen = watched(run, self.config.mode, self._pipe, self._say_once)
                with seen, self._turn(unfit):
                    yield
                self.denoiser.learn(self._calls.under_way)
                mode = "exact" if self.here.is_apart else self.config.mode
                self.report = run.report(mode, traffic.after(self.ranks.driver), before)
            except Prepared:
                raise
            except BaseException:
                self.report = None  # what it says of an earlier call would be taken for this one's
                raise
            finally:
                self.under_way = self._owner = None
                if self.denoiser.has_captured and not self.here.is_dry:
                    self.denoiser.has_captured = False
                    memory.trim()  # the first picture leaves what no other one needs

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Within this, no call of another thread is under way; one of this thread may be."""
        # In a forked child the lock may be held by a thread that is not there.
        free = self.ranks.are_forked or self._owner == threading.get_ident()
        with nullcontext() if free else self._lock:
            yield

    def denoise(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Answer one denoiser call, in place of the denoiser's own `forward`."""
        run, calls = self.under_way, self._calls
        assert run is not None  # only within its turn
        call = DenoiserCall.of(self.attachment.parameters, args, kwargs)
        own = torch.get_num_threads()

        def as_asked() -> Any:
            with threads(self.ranks.device, own):  # in the midst of trying, which has one
                return forward(*args, **kwargs)

        if call.wants_gradient:  # in a callback, say; not a step of the run
            self._one_rank("denoiser call", "its gradient is asked for, and programs have none")
            return as_asked()
        if calls.awaits(call):
            if not self.denoiser.ways.has_denoiser_changed():
                return calls.answer()
            calls.give_up("the denoiser itself")
        if calls.surprise:
            run.withdraw()
            run.unguided += 1
            self._say_once(f"one rank runs a denoiser call: {calls.not_as_assumed}")
        if not run.index:
            self._begin(call)
        calls.note(call)
        if calls.is_first:
            self.denoiser.learn(calls.last)
        is_foreseen, answer = self._share(run, call, as_asked, forward)
        if not is_foreseen:
            run.unguided += calls.is_first
            run.extra += not calls.is_first
        return answer

    def _share(
        self, run: Run, call: DenoiserCall, as_asked: Callable[[], Any], forward: Callable[..., Any]
    ) -> tuple[bool, Any]:
        """Answer a call that was not awaited; one that begins a step, with all calls of that.

        Returns:
            Whether it is a step of the run, and the answer.
        """
        step = self._calls.assumed(call)
        if self.here.is_dry and self.config.gpus == 1:
            self._one_rank("denoiser call", "gpus=1 runs the denoiser as it is")
        has_steps = call.parts > 1 or step is not None or self.config.mode == "hybrid"
        if has_steps and not (run.done or self.here.is_apart):
            # Before anything is traced: it may be refused.
            run.wanted = self.config.switching(self._family, sampler.num_steps(self._pipe))
        if step is not None:
            way = self.denoiser.way_of_step(step)
            if not isinstance(way, AsItIs):
                return self._compute(run, step, way, as_asked, forward)
            self._one_rank("pipeline's calls, one by one", way.reason)
            self._calls.are_apart = True
        is_whole = self.denoiser.is_whole(call)
        if not (is_whole or (self._calls.are_apart and call.parts > 1)):
            return False, self.denoiser.ways.as_it_is(call, as_asked)
        way, answer = self.denoiser.way(call, as_asked, is_whole=is_whole)
        if not isinstance(way, AsItIs):
            return self._compute(run, Branches((call,)), way, as_asked, forward)
        self._one_rank("denoiser call", way.reason)
        return False, as_asked() if answer is None else answer

    def _compute(
        self,
        run: Run,
        step: Branches,
        way: Entry | OneDevice,
        as_asked: Callable[[], Any],
        forward: Callable[..., Any],
    ) -> tuple[bool, Any]:
        """Answer all calls of a step, the first of them now; see `_share`."""
        if not run.done:
            run.begin(run.wanted, self._pipe)
        if self.here.is_dry:
            raise Prepared
        is_alone = isinstance(way, OneDevice) and len(step.calls) == 1 and self.config.gpus > 1
        if is_alone and (reason := uneven(step.calls[0])):
            self._say_once(f"one rank runs this denoiser: {reason}")
        answers = self.denoiser.compute(run, step, way, forward)
        # Asked only after a step of ranks was launched: a GPU computes meanwhile.
        if isinstance(way, Entry) and self.denoiser.ways.has_denoiser_changed():
            run.withdraw()
            self._one_rank("denoiser call", self.denoiser.ways.while_changed(step).reason)
            return False, as_asked()
        self._calls.answered(step, answers)
        return True, answers[0]

    def _begin(self, call: DenoiserCall) -> None:
        """At the first call of a run: some pipelines set their denoiser otherwise for each."""
        if not self.denoiser.ways.are_current():
            self.denoiser.forget()
        if self.config.mode == "asyncdiff":
            check_doubled(self._pipe, call)

    @property
    def ranks(self) -> Ranks:
        """What computes."""
        return self.denoiser.ranks

    @property
    def entries(self) -> Mapping[Signature, Entry]:
        """What was captured, by the signature of the call."""
        return self.denoiser.ways.entries

    @property
    def lacks(self) -> str:
        """Why there are no programs yet, and what to do."""
        if self.config.gpus == 1:
            return "a model of one rank has no programs; call optimize(pipe, gpus=2)."
        return "no guided call was captured yet; call model.compile(...) or make a picture first."

    def _follow(self) -> str:
        """Serve the denoiser that the pipeline has now; returns why that cannot be, or ""."""
        try:
            _, denoiser = attach.find(self._pipe)
            attach.check(denoiser)
            device = device_of(denoiser)
        except UnsupportedPipelineError as e:
            return str(e)
        if self.ranks.driver is not None and device != self.ranks.device:
            return (
                f"its denoiser is on {device} now, and the ranks are on {self.ranks.device}; call "
                "restore(), and optimize(pipe) again"
            )
        self.ranks.device = device
        if denoiser is not self.attachment.denoiser:
            self.denoiser.forget()
            self.attachment.follow(denoiser)
        return ""

    def _turn(self, unfit: str) -> AbstractContextManager[None]:
        """Within this, the denoiser's calls are answered here, unless it is unfit for that."""
        if not unfit:
            return self.attachment.turn(self.denoise)
        self._one_rank("pipeline", unfit)
        return nullcontext()

    def _one_rank(self, what: str, reason: str) -> None:
        """Say once why only one rank runs something; end a dry call."""
        if self.here.is_dry:
            self._say_once(f"there is nothing to prepare: {reason}")
            raise Prepared
        self._say_once(f"one rank runs this {what}: {reason}")

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.warning(text)
