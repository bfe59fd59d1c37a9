"""What a run did: phases, times, discrepancies and bytes, step by step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hybridiff_compile.ir import Phase


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One denoising step.

    Attributes:
        index: counted from 0 in the order of execution.
        phase: the phase it ran in.
        seconds: on the driver's clock; on a GPU it is the time to launch the step, not to run it.
        discrepancy: M_i of Eq. (1); None while pipelined, where the branches are one value.
    """

    index: int
    phase: Phase
    seconds: float
    discrepancy: float | None


@dataclass(frozen=True, slots=True)
class RunReport:
    """One picture (or one call's pictures).

    Attributes:
        mode: "exact" or "paper".
        ranks: ranks that took part; 1 when the pipeline did not guide.
        steps: one record a guided denoising step.
        tau1, tau2: first pipelined and first serial step after it; None if it never pipelined.
        bytes_sent: by all ranks, tensors and control messages, over the whole run; 0 if a worker
            ended after the last step, before it said how many.
        worker_rss_mb: resident memory of each worker at the end of the run, MB; () likewise.
    """

    mode: str
    ranks: int
    steps: tuple[StepRecord, ...]
    tau1: int | None
    tau2: int | None
    bytes_sent: int
    worker_rss_mb: tuple[float, ...]

    @property
    def steps_by_phase(self) -> dict[str, int]:
        """Number of steps in each phase, by its lower-case name."""
        counts = Counter(s.phase for s in self.steps)
        return {phase.name.lower(): counts[phase] for phase in Phase}
