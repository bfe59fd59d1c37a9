"""One call of the pipeline under way: what it has done so far, and the phase that comes next."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from hybridiff_compile.config import Controlled, Pinned, Switching, SwitchSettings
from hybridiff_compile.ir import GUIDED, Phase
from hybridiff_compile.runtime import sampler, switching
from hybridiff_compile.runtime.done import Done, records
from hybridiff_compile.runtime.estimate import axis
from hybridiff_compile.runtime.forecast import READ_AFTER, Forecast
from hybridiff_compile.runtime.inputs import Inputs
from hybridiff_compile.runtime.report import RunReport, Traffic
from hybridiff_compile.runtime.weighing import Weighing

_IRREGULAR = "more or less than one denoiser call between two steps of the scheduler"


@dataclass
class Run:
    """The bookkeeping of one call.

    Attributes:
        mode: as in `optimize`.
        say: tells the user something, once.
        wanted: how its phases are to be chosen once something is shared.
        settings: how its phases are chosen; None is always serial.
        forecast: what is extrapolated; None in a mode that extrapolates nothing.
        inputs: of its steps, where something is extrapolated.
        done: the steps so far whose rows were shared or looked at.
        step_ends: is told that the scheduler makes a step of what the denoiser was called for.
        unguided: other steps so far, whose calls were run as they are.
        extra: calls of the step under way that were run as they are, after its first one.
        tau1: first pipelined step of the paper's mode, once it is known.
        last_key: of the captured signature of the last step.
        spec: the form of an answer, where one device makes them.
        ranks: that took part.
        declined: why nothing is pipelined though it was asked for; "" if it is.
        branches: parts of the last prediction that were computed apart.
        weighing: the weights that the pipeline gives the rows of its predictions.
        is_ordered: whether the paper's mode was found to have the batch that it needs.
        scheduled: steps so far, guided or not, before the scheduler's last one.
        regular: scheduler steps in a row, up to the last one, with one denoiser call each.
        returned: the last prediction, until the scheduler is given what was made of it.
    """

    mode: str = "hybrid"
    say: Callable[[str], None] = lambda text: None
    wanted: Switching = None
    settings: Switching = None
    forecast: Forecast | None = None
    inputs: Inputs = field(default_factory=Inputs)
    done: list[Done] = field(default_factory=list)
    step_ends: Callable[[], object] = lambda: None
    unguided: int = 0
    extra: int = 0
    tau1: int | None = None
    last_key: int | None = None
    spec: Any = None
    ranks: int = 1
    declined: str = ""
    branches: int = 2
    weighing: Weighing = field(default_factory=Weighing)
    is_ordered: bool = False
    scheduled: int = 0
    regular: int = 0
    returned: torch.Tensor | None = None

    @property
    def index(self) -> int:
        """Of the step under way, among all of the run's."""
        return len(self.done) + self.unguided

    def begin(self, settings: Switching, pipe: Any) -> None:
        """Before the first guided step: how this run of a pipeline will switch."""
        self.settings = settings
        if isinstance(settings, Pinned | Controlled):
            along = axis(pipe.scheduler, sampler.num_steps(pipe), settings.estimator)
            parts = 2 if self.mode == "guided" else 1  # it computes one half at a time
            self.forecast = Forecast(settings.estimator, along, parts)

    def decline(self, why: str) -> None:
        """Pipeline nothing in this run, and say why."""
        self.declined = why
        self.say(f"nothing is pipelined: {why}")

    def note_scheduled(self, given: torch.Tensor | None, sample: torch.Tensor | None) -> None:
        """Before each step of the scheduler: weigh the error that the denoiser's step has shown.

        Args:
            given: what the pipeline made of the prediction; None if it is no tensor.
            sample: the noisy picture that the scheduler was given with it.
        """
        calls, self.scheduled = self.index - self.scheduled + self.extra, self.index
        self.extra = 0
        self.step_ends()
        returned, self.returned = self.returned, None
        self.regular = self.regular + 1 if calls == 1 else 0
        if calls != 1:
            self._tell_irregular()
            return
        if returned is None:
            return
        is_shown = self.forecast is not None and self.forecast.has_unweighed
        if is_shown or (self._needs_order and not self.is_ordered):
            self.weighing.look(self.index - 1, returned, given, sample)
        if self.forecast is not None:
            self.done[-1].error = self.forecast.weighed(self.weighing.error)

    @property
    def _needs_order(self) -> bool:
        """Only the paper's pipelined steps take one half for the guided prediction."""
        return self.mode == "paper" and isinstance(self.settings, SwitchSettings)

    def _tell_irregular(self) -> None:
        """What was foreseen from one call to the next is of no use; nor is what comes late."""
        if self.forecast is not None:
            self.forecast.restart()
        if self.settings is not None:
            self.say(
                f"this pipeline makes {_IRREGULAR}: such steps are computed, as what is known of "
                "one call tells nothing of the next"
            )

    def step(
        self,
        key: int | None,
        compute: Callable[[Phase], torch.Tensor],
        inputs: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Decide the next step's phase, run it, and note what it was like.

        Args:
            key: of the step's captured signature.
            compute: runs a phase that has a program; see `complete`.
            inputs: of the denoiser, by name.

        Returns:
            The prediction of all branches, [rows, ...].
        """
        start = time.perf_counter()
        if self.forecast is not None:
            self.inputs.note(self.index, inputs)
            if self.last_key != key or self.inputs.changed:
                self.forecast.restart()
        phase, reason = self.decide(key)
        returned = None if phase is Phase.FORECAST else compute(phase)
        prediction, measured = self.complete(phase, returned)
        self.done.append(Done(self.index, phase, reason, time.perf_counter() - start, measured))
        self.returned = prediction
        return prediction

    def withdraw(self) -> None:
        """The last step's prediction is not used: one rank has answered a call as it is."""
        self.done.pop()
        self.returned = None
        if self.forecast is not None:
            self.forecast.restart()

    def decide(self, key: int | None) -> tuple[Phase, str]:
        """The phase of the next step, whose captured signature has this key, and why."""
        step, settings = self.index, self.settings
        if self.last_key != key or not self.done:
            return Phase.SERIAL, "the first step of its shape"
        if self.done[-1].index != step - 1:
            return Phase.SERIAL, "the first step after some without guidance"
        if settings is None:
            return Phase.SERIAL, "this mode is always serial"
        if self.scheduled != step:
            self._tell_irregular()
        if self.scheduled != step or not self.regular:
            return Phase.SERIAL, _IRREGULAR
        if self.inputs.changed:
            return Phase.SERIAL, f"an input has changed: {self.inputs.changed}"
        phase, reason = self._wanted(step, settings)
        return self._possible(step, phase, reason)

    def _wanted(self, step: int, settings: Switching) -> tuple[Phase, str]:
        if isinstance(settings, Pinned):
            within = settings.tau1 <= step < settings.tau1 + settings.k
            where = f"tau1={settings.tau1}, k={settings.k}"
            reason = f"pinned: {settings.mode}, {where}" if within else f"outside {where}"
            return switching.pinned_phase(step, settings), reason
        if isinstance(settings, Controlled):
            assert self.forecast is not None
            computed = [done.index for done in self.done if done.phase is Phase.SERIAL]
            predicted = self.forecast.predicted(step)
            begun = self.inputs.begun
            return switching.controlled_phase(step, computed, predicted, settings, begun)
        assert settings is not None
        step = len(self.done)  # the paper knows guided steps only
        # Reading a discrepancy waits for the device; it is read only while tau1 is searched.
        if self.tau1 is None and (settings.tau1 is not None or step > settings.L_slope):
            seen = [float(d.discrepancy) for d in self.done if d.discrepancy is not None]
            self.tau1 = switching.find_tau1(seen, settings)
        elif self.tau1 is None and step >= settings.tau_cap:
            self.tau1 = settings.tau_cap
        known = "not known yet" if self.tau1 is None else self.tau1
        return switching.phase_of(step, self.tau1, settings), f"tau1 {known}, k={settings.k}"

    def _possible(self, step: int, phase: Phase, reason: str) -> tuple[Phase, str]:
        """The phase that was wanted, or a serial step in its place."""
        if phase is Phase.SERIAL:
            return phase, reason
        if self._needs_order and not (self.is_ordered or self.declined):
            why = self.weighing.not_uncond_cond(step - READ_AFTER)
            if why is None:
                return Phase.SERIAL, "which half of the batch is the guided one is not known yet"
            self.is_ordered = not why
            if why:
                self.decline(why)
        if self.declined and phase is not Phase.FORECAST:
            return Phase.SERIAL, self.declined
        return phase, reason

    def complete(
        self, phase: Phase, returned: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Make a step's prediction of what its phase returned.

        Args:
            phase: of the step.
            returned: [rows, ...]; guided, one half's late prediction; None if none was run.

        Returns:
            The prediction of all rows, [rows, ...]; and the discrepancy of two branches.
        """
        step, forecast = self.index, self.forecast
        if returned is None:
            assert forecast is not None
            return forecast.estimate(step), None
        if phase in GUIDED:
            assert forecast is not None
            forecast.arrived(step, phase, returned)
            return forecast.estimate(step), None
        if phase is not Phase.SERIAL:
            return returned, None
        if forecast is not None:
            forecast.computed(step, returned)
        branches = returned.chunk(self.branches)
        return returned, switching.discrepancy(*branches) if len(branches) == 2 else None

    def report(self, mode: str, after: Traffic | None, before: Traffic) -> RunReport:
        """What the call did, in a mode; the traffic is of all ranks, None if it is not known."""
        steps = records(self.done)
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
            tolerance=getattr(self.settings, "tolerance", None),
            unguided=self.unguided,
        )
