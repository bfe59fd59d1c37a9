"""What a run did: phases, times, discrepancies and bytes, step by step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from hybridiff_compile.ir import Phase

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    """One picture (or one call's pictures); printed, it is a line of what was done.

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
        tolerance: of hybrid: the largest weighted error that a step is extrapolated with.
        unguided: further calls of the denoiser, which one rank ran as the pipeline made them.
    """

    mode: str
    ranks: int
    steps: tuple[StepRecord, ...]
    tau1: int | None
    tau2: int | None
    bytes_sent: int
    worker_rss_mb: tuple[float, ...]
    rank_steps: tuple[tuple[RankStep, ...], ...] = ()
    tolerance: float | None = None
    unguided: int = 0

    @property
    def steps_by_phase(self) -> dict[str, int]:
        """Number of steps that lie in each phase: "serial", "pipelined", "forecast"."""
        counts = Counter(s.counted for s in self.steps)
        return {kind: counts[kind] for kind in ("serial", "pipelined", "forecast")}

    @property
    def fewer_forwards(self) -> float:
        """How many times fewer forwards than one device makes that computes every step.

        A forward is the denoiser run once on half of the batch (one branch), by whichever rank: one
        device makes two of them a step. A pipelined step makes one, between both ranks (in mode
        "asyncdiff" two), though the last one leaves some of it out; an extrapolated step none.
        """
        kinds = Counter(step.phase.kind for step in self.steps)
        made = 2 * kinds["serial"] + (2 if self.mode == "asyncdiff" else 1) * kinds["pipelined"]
        return 2 * len(self.steps) / made if made else 1.0

    @property
    def largest_error(self) -> float | None:
        """Largest weighted error that was seen after steps that were not computed.

        Such a step's own error is not known. What is known is that of the estimate for the next
        step that was computed, which lies one further on; guided, that of the step before.
        """
        pairs = zip(self.steps, self.steps[1:], strict=False)
        seen = [s.error for b, s in pairs if s.error is not None and b.phase is not Phase.SERIAL]
        return max(seen, default=None)

    def __str__(self) -> str:
        """What was done, in one line."""
        others = f"{_count(self.unguided, 'denoiser call')} left to the pipeline"
        if not self.steps:
            return others if self.unguided else "no denoiser call was taken over"
        kinds = Counter(s.phase.kind for s in self.steps)
        words = {"serial": "computed", "pipelined": "pipelined", "forecast": "extrapolated"}
        done = ", ".join(f"{kinds[kind]} {word}" for kind, word in words.items() if kinds[kind])
        if kinds["forecast"] and self.tolerance is not None:
            done += f", each expected to be off by {self.tolerance:g} at most"
        said = [f"{_count(len(self.steps), 'step')} on {_count(self.ranks, 'rank')}: {done}"]
        if self.unguided:
            said.append(others)
        if (fewer := f"{self.fewer_forwards:.1f}") != "1.0":
            said.append(f"{fewer}x fewer forwards")
        if self.largest_error is not None:
            # The step after those is computed, as its error may lie above the tolerance.
            error, is_next = f"{self.largest_error:.2g}", kinds["forecast"] > 0
            next_step = f"the next step would have been off by {error} at most"
            said.append(next_step if is_next else f"largest error {error}")
        return "; ".join(said)

    def plot(self) -> Figure:
        """Draw the ranks' steps on a time line, and the errors that were seen, by step.

        Returns:
            A figure; `.savefig("run.png")` writes it.
        """
        # Here, because a worker imports this module and never draws.
        from hybridiff_compile.runtime import timeline

        return timeline.figure(self)


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
