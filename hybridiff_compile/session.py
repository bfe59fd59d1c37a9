"""From one denoiser call to a prediction: the place where capture, passes and runtime meet."""

from __future__ import annotations

import inspect
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from hybridiff_compile import arguments, lower
from hybridiff_compile.capture.call import DenoiserCall, Rows, Signature
from hybridiff_compile.capture.fingerprint import fingerprint
from hybridiff_compile.capture.prediction import Form
from hybridiff_compile.config import Config, SwitchSettings
from hybridiff_compile.debug import call_name
from hybridiff_compile.entry import (
    Entry,
    capture_entry,
    not_packaged,
    one_compiler,
    run_apart,
)
from hybridiff_compile.errors import ConfigError, PackageError
from hybridiff_compile.here import Here, Prepared
from hybridiff_compile.ir import Phase, RankProgram
from hybridiff_compile.lower.device import device_of
from hybridiff_compile.runtime import memory, messages, traffic, weights
from hybridiff_compile.runtime.attach import Attachment, check_call
from hybridiff_compile.runtime.driver import Driver, one_thread
from hybridiff_compile.runtime.fleet import Start, forked
from hybridiff_compile.runtime.report import RunReport
from hybridiff_compile.runtime.run import Run
from hybridiff_compile.ways import AsItIs, Asked, Way, Ways, check_doubled, uneven

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
        self.tell: Callable[[str], None] = logger.info
        #: Undoes what a package did to the denoiser's weights, once nothing is attached.
        self.give_back: Callable[[], None] = lambda: None
        self._here = Here()
        self._pipe, self.denoiser, self.config, self._family = pipe, denoiser, config, family
        self._start, self._packaged = start, packaged is not None
        self._driver: Driver | None = None
        self._weights: weights.Published | None = None
        self._ways = Ways(self._trying, self._capture)
        self._fingerprint = self._captures = 0
        self._run: Run | None = None
        self._owner: int | None = None
        self._said: set[str] = set()
        self._to_trim = False
        self._be_ready: Callable[[], None] = lambda: None
        self._lock, self._pid = threading.Lock(), os.getpid()
        self._parameters = tuple(inspect.signature(denoiser.forward).parameters)
        self.device = device_of(denoiser)
        self.attachment = Attachment(pipe, denoiser, self.run, self.denoise)
        try:
            if packaged is not None:  # now that nothing stands in the way: it writes the weights
                entries, self.give_back = packaged()
                self._ways.add(entries)
            if config.gpus > 1:
                self._connect()
        except BaseException:
            self.attachment.detach()
            self.give_back()
            raise

    def dry(self) -> AbstractContextManager[None]:
        """Within this, a call of the pipeline in this thread ends once its programs are ready."""
        return self._here.dry()

    def apart(self) -> AbstractContextManager[None]:
        """Within this, the calls of this thread are made by this device alone, branch by branch."""
        return self._here.apart()

    @contextmanager
    def run(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Around one call of the pipeline; calls from several threads take turns.

        Args:
            args, kwargs: of the call.

        Raises:
            ConfigError: called from a callback of a call that is under way, or with arguments
                that give no picture.
            ClosedError: in a fork of the process that the worker serves.
            Others: see `attach.check_call`.
        """
        self._check_fork()
        if self._owner == threading.get_ident():
            raise ConfigError("the model is called from its own callback; call it after the run.")
        arguments.check_call(self._pipe, args, kwargs)
        check_call(self._pipe, self.denoiser, self.device)
        with self._lock, self._here.random_numbers_kept(self.device):
            self._owner = threading.get_ident()
            try:
                before = traffic.before(self._driver)
                self._forget_if_changed()
                if self._driver is not None:
                    self._driver.agree()
                self._run = run = Run()
                with run.watched(self.config.mode, self._pipe, self._say_once):
                    yield
                mode = "exact" if self._here.is_apart else self.config.mode
                self.report = run.report(mode, traffic.after(self._driver), before)
            except Prepared:
                raise
            except BaseException:
                self.report = None  # what it says of an earlier call would be taken for this one's
                raise
            finally:
                self._run = self._owner = None
                if self._to_trim and not self._here.is_dry:
                    self._to_trim = False  # the first picture leaves what no other one needs
                    memory.trim()

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Within this, no call of another thread is under way; one of this thread may be."""
        # In a forked child the lock may be held by a thread that is not there.
        free = self._is_forked or self._owner == threading.get_ident()
        with nullcontext() if free else self._lock:
            yield

    def _check_fork(self) -> None:
        if self._is_forked:
            raise forked(self._pid)

    @property
    def _is_forked(self) -> bool:
        """Whether this process is a fork of the one whose worker it is."""
        return self.config.gpus > 1 and os.getpid() != self._pid

    def denoise(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Answer one denoiser call, in place of the denoiser's own `forward`."""
        run = self._run
        if run is None or self._owner != threading.get_ident():  # called from outside the pipeline
            return forward(*args, **kwargs)
        call = DenoiserCall.of(self._parameters, args, kwargs)
        if self._here.is_dry and self.config.gpus == 1:
            self._say_once("there is nothing to prepare: gpus=1 runs the denoiser as it is")
            raise Prepared
        if self.config.mode == "asyncdiff" and not run.index:
            check_doubled(self._pipe, call)
        switching = None
        if not (run.done or self._here.is_apart or uneven(call)):  # before anything is traced
            switching = self.config.switching(self._family, self._num_steps())
        way, answer = self._way(call, lambda: forward(*args, **kwargs))
        if isinstance(way, AsItIs):
            if self._here.is_dry:
                self._say_once(f"there is nothing to prepare: {way.reason}")
                raise Prepared
            self._say_once(f"one rank runs this denoiser call: {way.reason}")
            run.unguided += 1
            return forward(*args, **kwargs) if answer is None else answer
        if not run.done:
            run.begin(switching, self._pipe, self._num_steps())
        if self._here.is_dry:
            raise Prepared
        if isinstance(way, Entry):
            return self._denoise_together(run, call, way)
        return self._denoise_here(run, call, way.rows, forward)

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

    def close(self) -> None:
        """End the worker; the next use would start another."""
        if self._driver is not None:
            self._driver.release()
            self._driver = None

    def _way(self, call: DenoiserCall, batched: Callable[[], Any]) -> tuple[Way, Any]:
        """How a call is answered, and its answer if finding that out gave one; see `Ways.of`."""
        asked, strict = Asked.RANKS, self._here.is_dry or self.config.mode == "asyncdiff"
        if self._here.is_apart or (self.config.gpus == 1 and self.config.mode == "exact"):
            asked = Asked.HALVES
        elif self.config.gpus == 1:
            asked = Asked.WHOLE
        if not self._ways:
            self._fingerprint = fingerprint(self.denoiser)
        return self._ways.of(asked, call, batched, strict=strict)

    @contextmanager
    def _trying(self) -> Iterator[nn.Module]:
        """Within this, the denoiser has its own forward and may be run and traced."""
        with one_compiler, one_thread(self.device), self.attachment.bypassed():
            yield self.denoiser

    def _num_steps(self) -> int:
        steps = getattr(self._pipe, "num_timesteps", None)
        return len(self._pipe.scheduler.timesteps) if steps is None else int(steps)

    def _denoise_here(
        self, run: Run, call: DenoiserCall, rows: Rows, forward: Callable[..., Any]
    ) -> Any:
        """One device: the halves one after the other, or, without rows, all in one batch."""
        name, form = type(self.denoiser).__name__, run.spec

        def compute(phase: Phase) -> torch.Tensor:
            nonlocal form
            with one_thread(self.device):
                if rows:
                    prediction, form = run_apart(name, call, rows, forward)
                    return prediction
                positional, keyword = call.arguments
                answer = forward(*positional.values(), **keyword)
            form = Form.of(answer, name)
            return form.pack(answer)

        key = hash(call.signature())
        prediction = run.step(key, compute)
        run.last_key, run.spec = key, form
        return form.unpack(prediction)

    def _denoise_together(self, run: Run, call: DenoiserCall, entry: Entry) -> Any:
        """Two ranks: each its part of the phase."""

        def compute(phase: Phase) -> torch.Tensor:
            inputs = call.inputs(entry.rows)
            return self._connect().step(entry.key, phase, len(run.done), inputs)

        prediction = run.step(entry.key, compute)
        run.last_key, run.ranks = entry.key, self.config.gpus
        return entry.form.unpack(prediction)

    def _capture(self, call: DenoiserCall, answer: Any) -> Entry:
        if self._packaged:
            raise PackageError(not_packaged(call, list(self.entries)))
        self.tell(f"capturing {type(self.denoiser).__name__}")
        self._captures += 1
        name = call_name(self._captures, next(iter(call.tensors().values())))
        dump = self.config.dump and self.config.dump / name
        with memory.lightly_collected():
            with self._trying() as denoiser:
                entry = capture_entry(denoiser, call, answer, self.config, dump)
            self._load(self._connect(), entry)
        self._to_trim = True
        logger.info("captured %s for %d ranks", type(self.denoiser).__name__, self.config.gpus)
        return entry

    def _connect(self) -> Driver:
        """The driver of a worker that is there: a new one if the last one is gone."""
        self._check_fork()
        if self._driver is None or not self._driver.fleet.is_open:
            self._weights = None
            self._driver = Driver(self._start(self._get_ready), self.device)
            if self.config.lowering.backend == "inductor":
                self._driver.fleet.send(messages.Warm(self.config.lowering))
            for entry in self.entries.values():
                self._load(self._driver, entry)
        return self._driver

    def _get_ready(self) -> None:
        """While a worker starts, do what needs none."""
        self._be_ready = lower.get_ready(self.config.lowering, self.device)
        if self.entries:  # they are loaded next; tracing is slower on weights in one mapping
            self._weights = weights.Published(self.denoiser)

    def _load(self, driver: Driver, entry: Entry) -> None:
        shared = self._weights = self._weights or weights.Published(self.denoiser)
        if shared.path is not None:
            driver.fleet.ask(messages.Weights(shared.path, shared.manifest))
            shared.close()
            self._fingerprint = fingerprint(self.denoiser)
        how, count = self.config.lowering, len(entry.programs)
        both = [RankProgram.of(p, r) for r in range(2) for p in entry.programs.values()]
        with one_compiler:
            prepared = lower.prepare(both, how)
            own, peer = prepared[:count], prepared[count:]

            def begin() -> lower.Finish:
                self._be_ready()  # as late as can be: what it waits for takes seconds
                return lower.begin(own, how, self.device, tell=self.tell)

            driver.load(entry.key, peer, shared.names, how, begin)

    def _forget_if_changed(self) -> None:
        """Capture again what no longer is what was captured: a LoRA loaded, `to()`, new weights."""
        if not self._ways or fingerprint(self.denoiser) == self._fingerprint:
            return
        if self._packaged:
            raise PackageError(
                "the denoiser has changed since its package was loaded (weights, a LoRA, a "
                "device); call restore(), then load() it again, or export the changed pipeline."
            )
        if self.entries:
            logger.warning("the denoiser has changed since it was captured; it is captured again")
        if self._driver is not None and self._driver.fleet.is_open:
            self._driver.unload([e.key for e in self.entries.values()])
        self._ways.clear()
        self._weights = None
        self.device = device_of(self.denoiser)

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.warning(text)
