"""From one denoiser call to a prediction: the place where capture, passes and runtime meet."""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from hybridiff_compile.capture.call import DenoiserCall, Signature, only_tensor
from hybridiff_compile.capture.fingerprint import fingerprint
from hybridiff_compile.capture.trace import Captured, capture
from hybridiff_compile.config import Config, SwitchSettings
from hybridiff_compile.debug import Dump
from hybridiff_compile.errors import ConfigError, UnsupportedPipelineError
from hybridiff_compile.ir import BRANCHES, Phase, RankProgram, StepProgram
from hybridiff_compile.lower.eager import lower
from hybridiff_compile.passes import build_programs
from hybridiff_compile.runtime import memory, messages, weights
from hybridiff_compile.runtime.attach import Attachment
from hybridiff_compile.runtime.driver import Driver, one_thread
from hybridiff_compile.runtime.fleet import Fleet, new_key, weights_file
from hybridiff_compile.runtime.report import RunReport
from hybridiff_compile.runtime.run import Run
from hybridiff_compile.runtime.switching import discrepancy

logger = logging.getLogger(__name__)


class Prepared(BaseException):
    """Ends a dry call once the programs are ready; no pipeline catches it by mistake."""


@dataclass
class _Entry:
    """A captured signature."""

    key: int
    captured: Captured
    programs: dict[Phase, StepProgram]


class Session:
    """Serves the denoiser calls of one pipeline."""

    def __init__(
        self,
        pipe: Any,
        denoiser: nn.Module,
        config: Config,
        family: SwitchSettings,
        start: Callable[[], Fleet],
    ) -> None:
        self.report: RunReport | None = None
        self._dry = threading.local()
        self._pipe, self._denoiser, self._config, self._family = pipe, denoiser, config, family
        self._start = start
        self._driver: Driver | None = None
        self._weight_names: dict[int, str] = {}
        self._entries: dict[Signature, _Entry] = {}
        self._fingerprint = 0
        self._run: Run | None = None
        self._owner: int | None = None
        self._said: set[str] = set()
        self._to_trim = False
        self._lock = threading.Lock()
        self._parameters = tuple(inspect.signature(denoiser.forward).parameters)
        self._device = next(denoiser.parameters()).device
        self.attachment = Attachment(pipe, denoiser, self.run, self.denoise)
        try:
            if config.gpus > 1:
                self._connect()
        except BaseException:
            self.attachment.detach()
            raise

    @contextmanager
    def dry(self) -> Iterator[None]:
        """Within this, a call of the pipeline in this thread ends once its programs are ready."""
        self._dry.on = True
        try:
            with suppress(Prepared):
                yield
        finally:
            self._dry.on = False

    @contextmanager
    def run(self) -> Iterator[None]:
        """Around one call of the pipeline; calls from several threads take turns.

        Raises:
            ConfigError: under autocast, or called from a callback of a call that is under way.
            UnsupportedPipelineError: the pipeline was given another denoiser since `optimize`.
        """
        self._check_call()
        with self._lock:
            self._owner = threading.get_ident()
            self._forget_if_changed()
            self._run = run = Run()
            before = self._traffic()
            try:
                yield
                self.report = run.report(self._config.mode, self._traffic(), before)
            finally:
                self._run = self._owner = None
                if self._to_trim:  # the first picture of a shape leaves buffers that no other needs
                    self._to_trim = False
                    memory.trim()

    def _check_call(self) -> None:
        if self._owner == threading.get_ident():
            raise ConfigError("the model is called from its own callback; call it after the run.")
        if torch.is_autocast_enabled(self._device.type):
            raise ConfigError(
                "torch.autocast does not reach the workers; convert the pipeline instead: "
                "pipe.to(dtype=...)."
            )
        if not any(getattr(self._pipe, n, None) is self._denoiser for n in ("unet", "transformer")):
            raise UnsupportedPipelineError(
                "the pipeline was given another denoiser after optimize(); call restore() and "
                "optimize(pipe) again."
            )

    def denoise(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Answer one denoiser call, in place of the denoiser's own `forward`."""
        run = self._run
        if run is None:  # called from outside the pipeline
            return forward(*args, **kwargs)
        call = DenoiserCall.of(self._parameters, args, kwargs)
        dry = getattr(self._dry, "on", False)
        guided = self._is_guided(run, call)
        if dry and not (guided and self._config.gpus > 1):
            raise Prepared  # there is nothing to prepare
        if not guided:
            self._say_once(
                "not guided (guidance_scale <= 1, or no [uncond, cond] batch): one rank runs it"
            )
            return forward(*args, **kwargs)
        if not run.records:
            run.settings = self._config.switching(self._family, self._num_steps())
        if self._config.gpus == 1:
            return self._denoise_apart(run, call, forward)
        entry = self._entry(call, forward, args, kwargs)
        if dry:
            raise Prepared
        return self._denoise_together(run, call, entry)

    def programs(self) -> list[dict[Phase, StepProgram]]:
        """The programs of every captured signature, by phase."""
        return [entry.programs for entry in self._entries.values()]

    def close(self) -> None:
        """End the worker; the next use would start another."""
        if self._driver is not None:
            self._driver.release()
            self._driver = None

    def _is_guided(self, run: Run, call: DenoiserCall) -> bool:
        """The pipeline says that it guides, and the batch is doubled; looked at once a run."""
        if not getattr(self._pipe, "do_classifier_free_guidance", True):
            return False
        signature = call.signature()
        if signature not in run.guided:
            run.guided[signature] = call.is_guided()
        return run.guided[signature]

    def _num_steps(self) -> int:
        steps = getattr(self._pipe, "num_timesteps", None)
        return len(self._pipe.scheduler.timesteps) if steps is None else int(steps)

    def _denoise_apart(self, run: Run, call: DenoiserCall, forward: Callable[..., Any]) -> Any:
        """One device: the branches one after the other, by the denoiser itself."""
        start = time.perf_counter()
        outputs = []
        with one_thread(self._device):
            for branch in range(len(BRANCHES)):
                positional, keyword = call.branch(branch).arguments
                output = forward(*positional.values(), **keyword)
                outputs.append(only_tensor(output, type(self._denoiser).__name__))
        (eps_u, spec), (eps_c, _) = outputs
        seconds = time.perf_counter() - start
        run.records.append((Phase.SERIAL, seconds, discrepancy(eps_u, eps_c)))
        return pytree.tree_unflatten([torch.cat([eps_u, eps_c])], spec)

    def _denoise_together(self, run: Run, call: DenoiserCall, entry: _Entry) -> Any:
        """Two ranks: decide the phase, run the step, note what it was like."""
        start = time.perf_counter()
        step = len(run.records)
        phase = run.decide(step)
        if run.last_key != entry.key:
            phase = Phase.SERIAL  # another shape: there are no features of a previous step
        prediction = self._connect().step(entry.key, phase, step, entry.captured.inputs(call))
        seconds = time.perf_counter() - start
        measured = discrepancy(*prediction.chunk(2)) if phase is Phase.SERIAL else None
        run.records.append((phase, seconds, measured))
        run.last_key, run.ranks = entry.key, self._config.gpus
        return pytree.tree_unflatten([prediction], entry.captured.spec)

    def _entry(
        self, call: DenoiserCall, forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]
    ) -> _Entry:
        """The captured signature of a call; captured now if it is new."""
        signature = call.signature()
        if signature not in self._entries:
            self._entries[signature] = self._capture(call, lambda: forward(*args, **kwargs))
        return self._entries[signature]

    def _capture(self, call: DenoiserCall, batched: Callable[[], Any]) -> _Entry:
        with one_thread(self._device), self.attachment.bypassed():
            captured = capture(self._denoiser, call, batched)
        observers = (Dump(self._config.dump),) if self._config.dump else ()
        programs = build_programs(captured.program, self._config.mode, observers)
        entry = _Entry(new_key(), captured, programs)
        self._load(self._connect(), entry)
        self._to_trim = True
        memory.trim()
        logger.info("captured %s for %d ranks", type(self._denoiser).__name__, self._config.gpus)
        return entry

    def _connect(self) -> Driver:
        """The driver of a worker that is there: a new one if the last one is gone."""
        if self._driver is None or not self._driver.fleet.is_open:
            self._driver = Driver(self._start(), self._device)
            self._weight_names = {}
            for entry in self._entries.values():
                self._load(self._driver, entry)
        return self._driver

    def _load(self, driver: Driver, entry: _Entry) -> None:
        if not self._weight_names:
            with weights_file() as path:
                manifest, self._weight_names = weights.publish(self._denoiser, path)
                driver.fleet.ask(messages.Weights(path, manifest))
            self._fingerprint = fingerprint(self._denoiser)
        programs = entry.programs.values()
        variants = [lower(RankProgram.of(p, 0)) for p in programs]
        driver.load(
            entry.key, variants, [RankProgram.of(p, 1) for p in programs], self._weight_names
        )

    def _forget_if_changed(self) -> None:
        """Capture again what no longer is what was captured: a LoRA loaded, `to()`, new weights."""
        if not self._entries or fingerprint(self._denoiser) == self._fingerprint:
            return
        logger.warning("the denoiser has changed since it was captured; it is captured again")
        if self._driver is not None and self._driver.fleet.is_open:
            self._driver.unload([e.key for e in self._entries.values()])
        self._entries.clear()
        self._weight_names = {}
        self._device = next(self._denoiser.parameters()).device

    def _traffic(self) -> tuple[int, float]:
        """Bytes sent by all ranks so far, and the worker's resident memory in MB."""
        if self._driver is None or not self._driver.fleet.is_open:
            return 0, 0.0
        return self._driver.traffic()

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.warning(text)
