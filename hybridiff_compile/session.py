"""From one denoiser call to a prediction: the place where capture, passes and runtime meet."""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from hybridiff_compile.capture.call import DenoiserCall, Signature, only_tensor
from hybridiff_compile.capture.fingerprint import fingerprint
from hybridiff_compile.capture.trace import Captured, capture
from hybridiff_compile.config import Config, SwitchSettings
from hybridiff_compile.debug import Dump
from hybridiff_compile.errors import HybridiffError
from hybridiff_compile.ir import BRANCHES, Phase, RankProgram, StepProgram
from hybridiff_compile.lower.eager import lower
from hybridiff_compile.passes import build_programs
from hybridiff_compile.runtime import memory, messages, weights
from hybridiff_compile.runtime.attach import Attachment
from hybridiff_compile.runtime.driver import Driver, one_thread
from hybridiff_compile.runtime.fleet import Fleet, new_key, weights_file
from hybridiff_compile.runtime.report import RunReport, StepRecord
from hybridiff_compile.runtime.switching import discrepancy, find_tau1, phase_of

logger = logging.getLogger(__name__)


class Prepared(BaseException):
    """Ends a dry call once the programs are ready; no pipeline catches it by mistake."""


@dataclass
class _Entry:
    """A captured signature."""

    key: int
    captured: Captured
    programs: dict[Phase, StepProgram]


@dataclass
class _Run:
    """One call of the pipeline, as far as it has come."""

    settings: SwitchSettings | None = None
    guided: dict[Signature, bool] = field(default_factory=dict)
    records: list[tuple[Phase, float, torch.Tensor | None]] = field(default_factory=list)
    tau1: int | None = None
    last_key: int | None = None
    ranks: int = 1


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
        self.dry = False
        self._pipe, self._denoiser, self._config, self._family = pipe, denoiser, config, family
        self._start = start
        self._driver: Driver | None = None
        self._weight_names: dict[int, str] = {}
        self._entries: dict[Signature, _Entry] = {}
        self._fingerprint = 0
        self._run: _Run | None = None
        self._said: set[str] = set()
        self._to_trim = False
        self._lock = threading.Lock()
        self._parameters = tuple(inspect.signature(denoiser.forward).parameters)
        self._device = next(denoiser.parameters()).device
        if config.gpus > 1:
            self._connect()
        self.attachment = Attachment(pipe, denoiser, self.run, self.denoise)

    @contextmanager
    def run(self) -> Iterator[None]:
        """Around one call of the pipeline; calls from several threads take turns."""
        with self._lock:
            self._forget_if_changed()
            self._run = run = _Run()
            before = self._traffic()
            try:
                yield
                self.report = self._reported(run, self._traffic(), before)
            finally:
                self._run = None
                if self._to_trim:  # the first picture of a shape leaves buffers that no other needs
                    self._to_trim = False
                    memory.trim()

    def denoise(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Answer one denoiser call, in place of the denoiser's own `forward`."""
        run = self._run
        if run is None:  # called from outside the pipeline
            return forward(*args, **kwargs)
        call = DenoiserCall.of(self._parameters, args, kwargs)
        if not self._is_guided(run, call):
            self._say_once("this call is not guided (no [uncond, cond] batch): one rank runs it")
            return forward(*args, **kwargs)
        if not run.records:
            run.settings = self._config.switching(self._family, self._num_steps())
        if self._config.gpus == 1:
            return self._denoise_apart(run, call, forward)
        entry = self._entry(call, forward, args, kwargs)
        if self.dry:
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

    def _is_guided(self, run: _Run, call: DenoiserCall) -> bool:
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

    def _denoise_apart(self, run: _Run, call: DenoiserCall, forward: Callable[..., Any]) -> Any:
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

    def _denoise_together(self, run: _Run, call: DenoiserCall, entry: _Entry) -> Any:
        """Two ranks: decide the phase, run the step, note what it was like."""
        start = time.perf_counter()
        step = len(run.records)
        phase = self._decide(run, step)
        if run.last_key != entry.key:
            phase = Phase.SERIAL  # another shape: there are no features of a previous step
        prediction = self._connect().step(entry.key, phase, step, entry.captured.inputs(call))
        seconds = time.perf_counter() - start
        measured = discrepancy(*prediction.chunk(2)) if phase is Phase.SERIAL else None
        run.records.append((phase, seconds, measured))
        run.last_key, run.ranks = entry.key, self._config.gpus
        return pytree.tree_unflatten([prediction], entry.captured.spec)

    def _decide(self, run: _Run, step: int) -> Phase:
        settings = run.settings
        if settings is None:
            return Phase.SERIAL
        # Reading a discrepancy waits for the device; it is read only while tau1 is searched.
        if run.tau1 is None and (settings.tau1 is not None or step > settings.L_slope):
            run.tau1 = find_tau1([float(m) for _, _, m in run.records if m is not None], settings)
        elif run.tau1 is None and step >= settings.tau_cap:
            run.tau1 = settings.tau_cap
        return phase_of(step, run.tau1, settings)

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

    def _reported(
        self, run: _Run, after: tuple[int, float], before: tuple[int, float]
    ) -> RunReport:
        steps = tuple(
            StepRecord(i, phase, seconds, None if m is None else float(m))
            for i, (phase, seconds, m) in enumerate(run.records)
        )
        pipelined = [s.index for s in steps if s.phase is Phase.PIPELINED]
        return RunReport(
            mode=self._config.mode,
            ranks=run.ranks,
            steps=steps,
            tau1=pipelined[0] if pipelined else None,
            tau2=pipelined[-1] + 1 if pipelined else None,
            bytes_sent=after[0] - before[0],
            worker_rss_mb=(after[1],) if run.ranks > 1 else (),
        )

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.warning(text)


def find_report(session: Session) -> RunReport:
    """The report of the last run.

    Raises:
        HybridiffError: there was none.
    """
    if session.report is None:
        raise HybridiffError("there is no report yet: make a picture first.")
    return session.report
