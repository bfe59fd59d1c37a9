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
from hybridiff_compile.capture.call import DenoiserCall, Signature
from hybridiff_compile.config import Config, SwitchSettings
from hybridiff_compile.debug import call_name
from hybridiff_compile.entry import Entry, capture_entry, not_packaged, one_compiler
from hybridiff_compile.errors import ConfigError, PackageError, UnsupportedPipelineError
from hybridiff_compile.here import Here, Prepared
from hybridiff_compile.ir import Phase
from hybridiff_compile.lower.device import device_of
from hybridiff_compile.ranks import Ranks
from hybridiff_compile.runtime import attach, memory, sampler, traffic
from hybridiff_compile.runtime.driver import one_thread, threads
from hybridiff_compile.runtime.fleet import Start
from hybridiff_compile.runtime.report import RunReport
from hybridiff_compile.runtime.run import Run
from hybridiff_compile.ways import AsItIs, Asked, OneDevice, Way, Ways, check_doubled, uneven

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
        self._packaged = packaged is not None
        self._captures = 0
        self.under_way: Run | None = None
        self._owner: int | None = None
        self._said: set[str] = set()
        self._to_trim = False
        self._lock = threading.Lock()
        self.attachment = attach.Attachment(pipe, denoiser, self.run)
        self.ranks = Ranks(self.attachment, start, config.lowering)
        self._ways = Ways(self.attachment, self._trying, self._capture)
        self.ranks.tell, self.ranks.moved = logger.info, self._ways.look_again
        try:
            if packaged is not None:  # now that nothing stands in the way: it writes the weights
                entries, self.give_back = packaged()
                self._ways.add(entries)
            if config.gpus > 1:
                self.ranks.connect(self._ways.entries.values())
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
                self.under_way = run = Run()
                self._ways.begin()
                with run.watched(self.config.mode, self._pipe, self._say_once), self._turn(unfit):
                    yield
                mode = "exact" if self.here.is_apart else self.config.mode
                self.report = run.report(mode, traffic.after(self.ranks.driver), before)
            except Prepared:
                raise
            except BaseException:
                self.report = None  # what it says of an earlier call would be taken for this one's
                raise
            finally:
                self.under_way = self._owner = None
                if self._to_trim and not self.here.is_dry:
                    self._to_trim = False  # the first picture leaves what no other one needs
                    memory.trim()

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
        run = self.under_way
        assert run is not None  # only within its turn
        call = DenoiserCall.of(self.attachment.parameters, args, kwargs)
        if call.wants_gradient:  # in a callback, say; not a step of the run
            self._one_rank("denoiser call", "its gradient is asked for, and programs have none")
            return forward(*args, **kwargs)
        if not run.index:
            self._begin(call)
        switching = None
        if not (run.done or self.here.is_apart or uneven(call)):  # before anything is traced
            switching = self.config.switching(self._family, sampler.num_steps(self._pipe))
        own = torch.get_num_threads()

        def batched() -> Any:
            with threads(self.ranks.device, own):  # in the midst of trying, which has one
                return forward(*args, **kwargs)

        way, answer = self._way(call, batched)
        if not run.done and not isinstance(way, AsItIs):
            run.begin(switching, self._pipe)
        if self.here.is_dry and not isinstance(way, AsItIs):
            raise Prepared
        if isinstance(way, OneDevice):
            return self._denoise_here(run, call, way, forward)
        if isinstance(way, Entry):
            together = self._denoise_together(run, call, way)
            if not self._ways.has_denoiser_changed():  # asked only now: a GPU computes meanwhile
                return together
            run.withdraw()
            way = self._ways.while_changed(Asked.RANKS, call)
        self._one_rank("denoiser call", way.reason)
        run.unguided += 1
        return forward(*args, **kwargs) if answer is None else answer

    def _begin(self, call: DenoiserCall) -> None:
        """At the first call of a run: some pipelines set their denoiser otherwise for each."""
        if not self._ways.are_current():
            self._forget()
        if self.config.mode == "asyncdiff":
            check_doubled(self._pipe, call)

    @property
    def entries(self) -> Mapping[Signature, Entry]:
        """What was captured, by the signature of the call."""
        return self._ways.entries

    @property
    def lacks(self) -> str:
        """Why there are no programs yet, and what to do."""
        if self.config.gpus == 1:
            return "a model of one rank has no programs; call optimize(pipe, gpus=2)."
        return "no guided call was captured yet; call model.compile(...) or make a picture first."

    def _way(self, call: DenoiserCall, batched: Callable[[], Any]) -> tuple[Way, Any]:
        """How a call is answered, and its answer if finding that out gave one; see `Ways.of`."""
        if self.here.is_dry and self.config.gpus == 1:
            return AsItIs("gpus=1 runs the denoiser as it is"), None
        asked, strict = Asked.RANKS, self.here.is_dry or self.config.mode == "asyncdiff"
        if self.here.is_apart or (self.config.gpus == 1 and self.config.mode == "exact"):
            asked = Asked.HALVES
        elif self.config.gpus == 1:
            asked = Asked.WHOLE
        return self._ways.of(asked, call, batched, strict=strict)

    @contextmanager
    def _trying(self) -> Iterator[nn.Module]:
        """Within this, the denoiser has its own forward and may be run and traced."""
        with one_compiler, one_thread(self.ranks.device), self.attachment.bypassed():
            yield self.attachment.denoiser

    def _denoise_here(
        self, run: Run, call: DenoiserCall, way: OneDevice, forward: Callable[..., Any]
    ) -> Any:
        """This device alone."""
        form = run.spec

        def compute(phase: Phase) -> torch.Tensor:
            nonlocal form
            with one_thread(self.ranks.device):
                prediction, form = way.compute(self.attachment.denoiser, call, forward)
            return prediction

        key = hash(call.signature())
        prediction = run.step(key, compute, call.tensors())
        run.last_key, run.spec = key, form
        return form.unpack(prediction)

    def _denoise_together(self, run: Run, call: DenoiserCall, entry: Entry) -> Any:
        """Two ranks: each its part of the phase."""

        def compute(phase: Phase) -> torch.Tensor:
            inputs = call.inputs(entry.rows)
            driver = self.ranks.connect(self.entries.values())
            return driver.step(entry.key, phase, len(run.done), inputs)

        prediction = run.step(entry.key, compute, call.tensors())
        run.last_key, run.ranks = entry.key, self.config.gpus
        return entry.form.unpack(prediction)

    def _capture(self, call: DenoiserCall, answer: Any) -> Entry:
        if self._packaged:
            raise PackageError(not_packaged(call, list(self.entries)))
        denoiser = type(self.attachment.denoiser).__name__
        self.ranks.tell(f"capturing {denoiser}")
        self._captures += 1
        name = call_name(self._captures, next(iter(call.tensors().values())))
        dump = self.config.dump and self.config.dump / name
        with memory.lightly_collected():
            with self._trying() as module:
                entry = capture_entry(module, call, answer, self.config, dump)
            self.ranks.add(entry, self.entries.values())
        self._to_trim = True
        logger.info("captured %s for %d ranks", denoiser, self.config.gpus)
        return entry

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
            self._forget()
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

    def _forget(self) -> None:
        """Capture again: what is captured is no longer the denoiser."""
        if self._packaged:
            raise PackageError(
                "the denoiser has changed since its package was loaded (weights, a LoRA, a "
                "device); call restore(), then load() it again, or export the changed pipeline."
            )
        if self.entries:
            logger.warning("the denoiser has changed since it was captured; it is captured again")
        self.ranks.forget(self.entries.values())
        self._ways.clear()

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.warning(text)
