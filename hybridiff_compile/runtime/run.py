"""One call of the pipeline under way: what it has done so far, and the phase that comes next."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from hybridiff_compile.config import Controlled, Pinned, Switching
from hybridiff_compile.ir import GUIDED, Phase
from hybridiff_compile.runtime import sampler
from hybridiff_compile.runtime.estimate import Reading, axis
from hybridiff_compile.runtime.forecast import Forecast
from hybridiff_compile.runtime.report import RunReport, StepRecord, Traffic
from hybridiff_compile.runtime.switching import (
    controlled_phase,
    counted,
    discrepancy,
    find_tau1,
    phase_of,
    pinned_phase,
)

_SEVERAL = "the pipeline calls its denoiser several times for a step of its sampler"


@dataclass
class Done:
    """A guided step that was run.

    Attributes:
        index: of the run's steps, guided or not.
        phase: that it ran in, and why.
        seconds: on the driver's clock.
        discrepancy: M_i of Eq. (1), still on its device; None if it was not computed serially.
        error: weighted error that was measured in it.
    """

    index: int
    phase: Phase
    reason: str
    seconds: float
    discrepancy: torch.Tensor | None = None
    error: Reading | None = None


@dataclass
class Run:
    """The bookkeeping of one call.

    Attributes:
        settings: how its phases are chosen; None is always serial.
        forecast: what is extrapolated; None in a mode that extrapolates nothing.
        guided: whether calls of a signature carry both branches, as looked at once.
        done: the guided steps so far.
        unguided: steps so far in which the pipeline did not guide.
        tau1: first pipelined step of the paper's mode, once it is known.
        last_key: of the captured signature of the last step.
        spec: the tree around a prediction, where one device makes them.
        ranks: that took part.
        declined: why nothing is pipelined though it was asked for; "" if it is.
        steps: of the run, as the pipeline said before the first one.
        calls: of the denoiser since the sampler's last step.
        most_calls: that one step took so far.
    """

    settings: Switching = None
    forecast: Forecast | None = None
    guided: dict[Any, bool] = field(default_factory=dict)
    done: list[Done] = field(default_factory=list)
    unguided: int = 0
    tau1: int | None = None
    last_key: int | None = None
    spec: Any = None
    ranks: int = 1
    declined: str = ""
    steps: int = 0
    calls: int = 0
    most_calls: int = 0

    @property
    def several(self) -> bool:
        """Whether the denoiser was called more than once for a step of the sampler.

        Such calls may be of different branches: one says nothing of the next.
        """
        return max(self.calls, self.most_calls) > 1

    def stepped(self) -> None:
        """The sampler makes a step."""
        self.most_calls, self.calls = max(self.most_calls, self.calls), 0

    @property
    def index(self) -> int:
        """Of the step under way, among all of the run's."""
        return len(self.done) + self.unguided

    def begin(self, settings: Switching, pipe: Any, steps: int) -> None:
        """Before the first guided step: how this run of `steps` steps of a pipeline will switch."""
        self.settings, self.steps = settings, steps
        if isinstance(settings, Pinned | Controlled):
            along = axis(pipe.scheduler, steps, settings.estimator)

            def guidance() -> float:  # looked at again each time: a callback may change it
                return float(getattr(pipe, "guidance_scale", 1.0))

            self.forecast = Forecast(settings.estimator, along, guidance)

    @contextmanager
    def watched(self, mode: str, pipe: Any, say: Callable[[str], None]) -> Iterator[None]:
        """Around the call: say what keeps a mode from doing well, and decline what cannot.

        A late or an extrapolated prediction knows nothing of noise that a sampler has added since.
        Guided pipelining is then declined; hybrid sees the error by itself.
        """
        scheduler = getattr(pipe, "scheduler", None)

        def tell(noisy: bool) -> None:
            noise = f"{type(scheduler).__name__} draws noise of its own"
            if noisy and mode == "guided":
                self.declined = noise
                say(f"nothing is pipelined: {noise}")
            elif noisy:
                say(
                    f"{noise}, of which a step that is pipelined or extrapolated knows nothing: "
                    "model.verify(prompt) tells what that does to a picture"
                )

        is_blind = mode in ("paper", "guided", "forecast", "asyncdiff") and scheduler is not None
        if mode == "exact" or not hasattr(scheduler, "step"):
            watch = nullcontext()
        else:
            watch = sampler.watched(scheduler, tell if is_blind else None, self.stepped)
        with watch:
            yield
        if self.settings is not None and self.several:
            say(f"nothing is extrapolated or pipelined: {_SEVERAL}")
            return
        if isinstance(self.settings, Controlled) and not any(
            done.phase is Phase.FORECAST for done in self.done
        ):
            say(
                f"hybrid extrapolated none of this run's {len(self.done)} steps; "
                "model.report.steps has the reason of each"
            )

    def step(self, key: int | None, compute: Callable[[Phase], torch.Tensor]) -> torch.Tensor:
        """Decide the next step's phase, run it, and note what it was like.

        Args:
            key: of the step's captured signature.
            compute: runs a phase that has a program; see `complete`.

        Returns:
            The prediction of both branches, [2B, ...].
        """
        start = time.perf_counter()
        phase, reason = self.decide(key)
        returned = None if phase is Phase.FORECAST else compute(phase)
        prediction, measured, error = self.complete(phase, returned)
        self.done.append(
            Done(self.index, phase, reason, time.perf_counter() - start, measured, error)
        )
        return prediction

    def decide(self, key: int | None) -> tuple[Phase, str]:
        """The phase of the next step, and why.

        Args:
            key: of the step's captured signature.
        """
        step, settings = self.index, self.settings
        if self.last_key != key or not self.done:
            return Phase.SERIAL, "the first step of its shape"
        if self.done[-1].index != step - 1:
            return Phase.SERIAL, "the first step after some without guidance"
        if settings is None or self.several or step >= self.steps > 0:
            return Phase.SERIAL, _SEVERAL if settings else "this mode is always serial"
        if isinstance(settings, Pinned):
            phase = pinned_phase(step, settings)
            if phase in GUIDED and self.declined:
                return Phase.SERIAL, self.declined
            within = settings.tau1 <= step < settings.tau1 + settings.k
            where = f"tau1={settings.tau1}, k={settings.k}"
            return phase, f"pinned: {settings.mode}, {where}" if within else f"outside {where}"
        if isinstance(settings, Controlled):
            assert self.forecast is not None
            computed = [done.index for done in self.done if done.phase is Phase.SERIAL]
            return controlled_phase(step, computed, self.forecast.predicted(step), settings)
        if self.declined:
            return Phase.SERIAL, self.declined
        step = len(self.done)  # the paper knows guided steps only
        # Reading a discrepancy waits for the device; it is read only while tau1 is searched.
        if self.tau1 is None and (settings.tau1 is not None or step > settings.L_slope):
            seen = [float(d.discrepancy) for d in self.done if d.discrepancy is not None]
            self.tau1 = find_tau1(seen, settings)
        elif self.tau1 is None and step >= settings.tau_cap:
            self.tau1 = settings.tau_cap
        known = "not known yet" if self.tau1 is None else self.tau1
        return phase_of(step, self.tau1, settings), f"tau1 {known}, k={settings.k}"

    def complete(
        self, phase: Phase, returned: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, Reading | None]:
        """Make a step's prediction of what its phase returned.

        Args:
            phase: of the step.
            returned: both branches, [2B, ...]; guided, the late prediction of one, [B, ...];
                None if nothing was run.

        Returns:
            The prediction of both branches, [2B, ...]; the discrepancy; the measured error.
        """
        step, forecast = self.index, self.forecast
        if returned is None:
            assert forecast is not None
            return forecast.estimate(step), None, None
        if phase in GUIDED:
            assert forecast is not None
            error = forecast.arrived(step, phase, returned)
            return forecast.estimate(step), None, error
        if phase is not Phase.SERIAL:
            return returned, None, None
        # Calls in turn, and more than there are steps, are of no line that goes on.
        follows = not self.several and not 0 < self.steps <= step
        error = forecast.computed(step, returned) if forecast and follows else None
        return returned, discrepancy(*returned.chunk(2)), error

    def report(self, mode: str, after: Traffic | None, before: Traffic) -> RunReport:
        """What the call did.

        Args:
            mode: as in `optimize`.
            after, before: of all ranks; None if it is not known.
        """
        kinds = counted([done.phase for done in self.done])
        steps = tuple(
            StepRecord(
                index=d.index,
                phase=d.phase,
                counted=kind,
                reason=d.reason,
                seconds=d.seconds,
                discrepancy=None if d.discrepancy is None else float(d.discrepancy),
                error=None if d.error is None else float(d.error),
            )
            for d, kind in zip(self.done, kinds, strict=True)
        )
        within = [s.index for s in steps if s.counted != Phase.SERIAL.kind]
        return RunReport(
            mode=mode,
            ranks=self.ranks,
            steps=steps,
            tau1=within[0] if within else None,
            tau2=within[-1] + 1 if within else None,
            bytes_sent=after.sent_bytes - before.sent_bytes if after else 0,
            worker_rss_mb=(after.rss_mb,) if after and self.ranks > 1 else (),
            rank_steps=after.steps if after else (),
        )
