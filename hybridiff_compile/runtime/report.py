"""What a run did: phases, times, discrepancies and bytes, step by step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from hybridiff_compile.ir import Phase


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One denoising step.

    Attributes:
        index: counted from 0 in the order of execution, steps without guidance included.
        phase: the phase it ran in.
        counted: "serial", "pipelined" or "forecast": the phase that it lies in. A step that was
            computed among extrapolated ones lies in the forecast phase.
        reason: why this phase.
        seconds: on the driver's clock; on a GPU it is the time to launch the step, not to run it.
        discrepancy: M_i of Eq. (1); None where the branches were not both computed.
        error: weighted error that an estimate was seen to make: of this step where it was computed,
            of the step before where it is pipelined with guidance. None where none was measured.
    """

    index: int
    phase: Phase
    counted: str
    reason: str
    seconds: float
    discrepancy: float | None
    error: float | None


@dataclass(frozen=True, slots=True)
class RankStep:
    """When a rank ran its program of a step: seconds on the host's monotonic clock.

    Attributes:
        step: its index.
        begin, end: of the program; on a GPU, of launching it.
        sent: when its last value for its peer left, which is when its part was computed; None
            if the program sends none.
    """

    step: int
    begin: float
    sent: float | None
    end: float


class Traffic(NamedTuple):
    """What the ranks of a driver have done.

    Attributes:
        sent_bytes: by all ranks, since they started.
        rss_mb: the worker's resident memory.
        steps: of each rank, since this was last asked for.
    """

    sent_bytes: int = 0
    rss_mb: float = 0.0
    steps: tuple[tuple[RankStep, ...], ...] = ()


class Progress(NamedTuple):
    """How far a call is.

    Attributes:
        step: index of its last denoiser call, from 0.
        steps: denoising steps of the call; with a pipeline that calls its denoiser several times a
            step there are more of those.
        phase: the last one's: "serial", "pipelined" or "forecast"; "as it is" if one rank ran the
            denoiser as it is.
    """

    step: int
    steps: int
    phase: str


@dataclass(frozen=True, slots=True)
class RunReport:
    """One picture (or one call's pictures).

    Attributes:
        mode: as in `optimize`.
        ranks: ranks that took part; 1 when the pipeline did not guide.
        steps: one record a guided denoising step.
        tau1, tau2: first step that is not counted as serial, and the first serial one after all of
            those; None if all are serial.
        bytes_sent: by all ranks, tensors and control messages, over the whole run; 0 if a worker
            ended after the last step, before it said how many.
        worker_rss_mb: resident memory of each worker at the end of the run, MB; () likewise.
        rank_steps: of each rank, the steps that it ran a program in; () likewise. Clocks of two
            hosts do not compare.
    """

    mode: str
    ranks: int
    steps: tuple[StepRecord, ...]
    tau1: int | None
    tau2: int | None
    bytes_sent: int
    worker_rss_mb: tuple[float, ...]
    rank_steps: tuple[tuple[RankStep, ...], ...] = ()

    @property
    def steps_by_phase(self) -> dict[str, int]:
        """Number of steps that lie in each phase: "serial", "pipelined", "forecast"."""
        counts = Counter(s.counted for s in self.steps)
        return {kind: counts[kind] for kind in ("serial", "pipelined", "forecast")}
