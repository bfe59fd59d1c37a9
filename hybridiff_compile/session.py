"""From one denoiser call to a prediction: the place where capture, passes and runtime meet."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn

from hybridiff_compile import arguments
from hybridiff_compile.answers import Answers
from hybridiff_compile.capture.call import Signature
from hybridiff_compile.config import Config, SwitchSettings
from hybridiff_compile.denoiser import Denoiser
from hybridiff_compile.entry import Entry
from hybridiff_compile.errors import ConfigError, UnsupportedPipelineError
from hybridiff_compile.here import Here, Prepared
from hybridiff_compile.lower.device import device_of
from hybridiff_compile.ranks import Ranks
from hybridiff_compile.runtime import attach, memory, traffic
from hybridiff_compile.runtime.fleet import Start
from hybridiff_compile.runtime.report import RunReport
from hybridiff_compile.runtime.route import Route
from hybridiff_compile.runtime.run import Run
from hybridiff_compile.runtime.watching import watched

logger = logging.getLogger(__name__)

#: A package's programs by call, and what gives the denoiser its own weights back.
Packaged = tuple[Mapping[Signature, Entry], Callable[[], None]]


class Session:
    """Serves the denoiser calls of one pipeline."""

    def __init__(
        self,
        pipe: Any,
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
        self._start, self._is_packaged = start, packaged is not None
        self._attachment = attach.Attachment(pipe, self.run)
        #: By the attributes that the pipeline has them at, the main one first.
        self.denoisers: dict[str, Denoiser] = {}
        try:
            self._add(*next(iter(attach.find(pipe).items())))
            if packaged is not None:  # now that nothing stands in the way: it writes the weights
                entries, self.give_back = packaged()
                self.denoiser.ways.add(entries)
            if config.gpus > 1:
                self.ranks.connect(self.denoiser.ways.entries.values())
        except BaseException:
            self._attachment.detach()
            self.close()
            raise

    def _add(self, name: str, denoiser: nn.Module) -> Denoiser:
        route = Route(denoiser)
        made = Denoiser(route, self.here, self.config, self._start, self._is_packaged)
        self.denoisers[name] = made
        return made

    @property
    def denoiser(self) -> Denoiser:
        """The main one."""
        return next(iter(self.denoisers.values()))

    @property
    def ranks(self) -> Ranks:
        """Those of the main denoiser."""
        return self.denoiser.ranks

    @property
    def entries(self) -> list[Entry]:
        """What was captured, of all denoisers."""
        return [e for d in self.denoisers.values() for e in d.ways.entries.values()]

    def detach(self) -> None:
        """Leave the pipeline as it was found; see `Attachment.detach`."""
        self._attachment.detach()

    def close(self) -> None:
        """Leave the denoisers as they were found, and end their workers."""
        for denoiser in self.denoisers.values():
            denoiser.close()
        self.give_back()

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
        has_turn = any(denoiser.route.has_turn for denoiser in self.denoisers.values())
        if self._owner == threading.get_ident() or has_turn:
            raise ConfigError(
                "the model is called from its own callback, or from that of a pipeline with the "
                "same denoiser; call it after the run."
            )
        arguments.check_call(self._pipe, args, kwargs)
        attach.refuse_autocast(self.ranks.device)
        with self._lock, self.here.random_numbers_kept(self.ranks.device):
            self._owner = threading.get_ident()
            try:
                drivers = [d.ranks.driver for d in self.denoisers.values()]
                before = traffic.before(drivers)
                run, say = Run(), self._say_once
                answers = Answers(self._pipe, run, self.config, self._family, self.here, say)
                fit = self._follow(answers.one_rank)
                calls = [denoiser.begin() for denoiser in fit]
                run.step_ends = lambda: [of.end_step() for of in calls]
                self.under_way = run
                with watched(run, self.config.mode, self._pipe, say), _turn(fit, answers):
                    yield
                for denoiser in fit:
                    denoiser.learn(denoiser.calls.known)
                mode = "exact" if self.here.is_apart else self.config.mode
                drivers = [d.ranks.driver for d in self.denoisers.values()]
                self.report = run.report(mode, traffic.after(drivers), before)
            except Prepared:
                raise
            except BaseException:
                self.report = None  # what it says of an earlier call would be taken for this one's
                raise
            finally:
                self.under_way = self._owner = None
                for denoiser in self.denoisers.values():
                    denoiser.rest()
                captured = [d for d in self.denoisers.values() if d.has_captured]
                if captured and not self.here.is_dry:
                    memory.trim()  # the first picture leaves what no other one needs
                    for denoiser in captured:
                        denoiser.has_captured = False

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Within this, no call of another thread is under way; one of this thread may be."""
        # In a forked child the lock may be held by a thread that is not there.
        free = self.ranks.are_forked or self._owner == threading.get_ident()
        with nullcontext() if free else self._lock:
            yield

    @property
    def lacks(self) -> str:
        """Why there are no programs yet, and what to do."""
        if self.config.gpus == 1:
            return "a model of one rank has no programs; call optimize(pipe, gpus=2)."
        return "no guided call was captured yet; call model.compile(...) or make a picture first."

    def _follow(self, one_rank: Callable[[str, str], None]) -> list[Denoiser]:
        """The denoisers that the pipeline has now, less those that cannot be served: as is said."""
        try:
            found = attach.find(self._pipe)
        except UnsupportedPipelineError as e:
            one_rank("pipeline", str(e))
            return []
        fit = []
        for i, (name, module) in enumerate(found.items()):
            if reason := self._unfit(module):
                one_rank(f"pipeline's {name}" if i else "pipeline", reason)
            elif name in self.denoisers:
                self.denoisers[name].follow(module)
                fit.append(self.denoisers[name])
            elif not self._is_packaged:
                fit.append(self._add(name, module))
        return fit

    def _unfit(self, denoiser: nn.Module) -> str:
        """Why a denoiser cannot be served; "" if it can."""
        try:
            attach.check(denoiser)
            device = device_of(denoiser)
        except UnsupportedPipelineError as e:
            return str(e)
        if self.ranks.driver is None or device == self.ranks.device:
            return ""
        return (
            f"its denoiser is on {device} now, and the ranks are on {self.ranks.device}; call "
            "restore(), and optimize(pipe) again"
        )

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.warning(text)


@contextmanager
def _turn(fit: Sequence[Denoiser], answers: Answers) -> Iterator[None]:
    """Within this, the denoisers' calls are answered."""
    with ExitStack() as stack:
        # In one order for all pipelines that share them.
        for denoiser in sorted(fit, key=lambda d: id(d.route.denoiser)):
            stack.enter_context(denoiser.route.turn(partial(answers.answer, denoiser)))
        yield
