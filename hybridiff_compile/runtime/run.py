"""One call of the pipeline under way: what it has done so far, and the phase that comes next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from hybridiff_compile.config import SwitchSettings
from hybridiff_compile.ir import Phase
from hybridiff_compile.runtime.report import RunReport, StepRecord
from hybridiff_compile.runtime.switching import find_tau1, phase_of


@dataclass
class Run:
    """The bookkeeping of one call.

    Attributes:
        settings: when to pipeline; None never does.
        guided: whether calls of a signature carry both branches, as looked at once.
        records: (phase, seconds, discrepancy or None) of each guided step.
        tau1: first pipelined step, once it is known.
        last_key: of the captured signature of the last step.
        ranks: that took part.
    """

    settings: SwitchSettings | None = None
    guided: dict[Any, bool] = field(default_factory=dict)
    records: list[tuple[Phase, float, torch.Tensor | None]] = field(default_factory=list)
    tau1: int | None = None
    last_key: int | None = None
    ranks: int = 1

    def decide(self, step: int) -> Phase:
        """The phase of a step, from the discrepancies of the steps before it."""
        settings = self.settings
        if settings is None:
            return Phase.SERIAL
        # Reading a discrepancy waits for the device; it is read only while tau1 is searched.
        if self.tau1 is None and (settings.tau1 is not None or step > settings.L_slope):
            self.tau1 = find_tau1([float(m) for _, _, m in self.records if m is not None], settings)
        elif self.tau1 is None and step >= settings.tau_cap:
            self.tau1 = settings.tau_cap
        return phase_of(step, self.tau1, settings)

    def report(
        self, mode: str, after: tuple[int, float] | None, before: tuple[int, float]
    ) -> RunReport:
        """What the call did.

        Args:
            mode: "exact" or "paper".
            after, before: (bytes sent by all ranks, worker MB); None if it is not known.
        """
        steps = tuple(
            StepRecord(i, phase, seconds, None if m is None else float(m))
            for i, (phase, seconds, m) in enumerate(self.records)
        )
        pipelined = [s.index for s in steps if s.phase is Phase.PIPELINED]
        return RunReport(
            mode=mode,
            ranks=self.ranks,
            steps=steps,
            tau1=pipelined[0] if pipelined else None,
            tau2=pipelined[-1] + 1 if pipelined else None,
            bytes_sent=after[0] - before[0] if after else 0,
            worker_rss_mb=(after[1],) if after and self.ranks > 1 else (),
        )
