"""Each rank's programs alone on one device: what two devices take is projected from it.

The programs are those that two ranks would run. Only their links are others: a received value is
copied from what the other rank's program sent on the same device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from hybridiff_compile import lower, ops
from hybridiff_compile.capture.branches import Branches
from hybridiff_compile.capture.call import DenoiserCall
from hybridiff_compile.capture.trace import Captured
from hybridiff_compile.config import Lowering
from hybridiff_compile.ir import Phase, RankProgram, StepProgram
from hybridiff_compile.passes import build_programs
from hybridiff_compile.planning import clock, devices, traffic
from hybridiff_compile.planning.runs import Times
from hybridiff_compile.runtime.driver import one_thread
from hybridiff_compile.runtime.rank import Rank


class _Done(dist.Work):
    def wait(self, timeout: Any = None) -> bool:
        return True


class LocalLink:
    """What one program sends, another one of the same process receives; the last value of a tag."""

    def __init__(self) -> None:
        self.sent: dict[int, torch.Tensor] = {}

    def send(self, tensors: list[torch.Tensor], dst: int, tag: int) -> dist.Work:
        """Keep the tensor."""
        self.sent[tag] = tensors[0]
        return _Done()

    def recv(self, tensors: list[torch.Tensor], src: int, tag: int) -> dist.Work:
        """Copy what was kept; zeros before anything was."""
        if tag in self.sent:
            tensors[0].copy_(self.sent[tag])
        else:
            tensors[0].zero_()
        return _Done()


def local_links() -> ops.Groups:
    """A link for each direction; stamps come back to their sender, so that its guard agrees."""
    stamps, links = LocalLink(), [LocalLink(), LocalLink()]
    return {
        **{ops.group_name(r, 1 - r): link for r, link in enumerate(links)},
        **{ops.group_name(r, 1 - r, stamp=True): stamps for r in range(2)},
    }


class Alone:
    """Both ranks' programs in one process, run one at a time.

    Args:
        programs: of the paper's mode, by phase.
        how: what is made of them.
        values: their inputs by name, on the device.
        device: that runs them.

    Attributes:
        cut_bytes, prediction_bytes: of one branch, as sent.
    """

    def __init__(
        self,
        programs: Mapping[Phase, StepProgram],
        how: Lowering,
        values: Mapping[str, torch.Tensor],
        device: torch.device,
    ) -> None:
        self.cut_bytes = traffic.link_bytes(programs[Phase.PIPELINED], 0)
        self.prediction_bytes = traffic.link_bytes(programs[Phase.SERIAL], 1)
        self._ranks, self._values = (Rank(device), Rank(device)), dict(values)
        self._device, self._links = device, local_links()
        count = len(programs)
        both = [RankProgram.of(p, r) for r in range(2) for p in programs.values()]
        prepared = lower.prepare(both, how)
        for r, rank in enumerate(self._ranks):
            own = prepared[r * count : (r + 1) * count]
            rank.load(0, lower.begin(own, how, device, ranks=1)())
        for r in (1, 0):  # rank 1 first: rank 0 reads what it sent
            self.step(r, Phase.SERIAL)
        self._values |= self._ranks[0].kept(0, ["cut"])

    def step(self, rank: int, phase: Phase) -> Mapping[str, torch.Tensor]:
        """Run one rank's step of a phase; returns what its program does."""
        ops.activate(self._links)
        contract = self._ranks[rank].variant(0, phase).contract
        wanted = (*contract.inputs, *contract.state)
        fed = {n: self._values[n] for n in wanted if n in self._values}
        return self._ranks[rank].step(0, phase, 0, fed)

    def samples(
        self, batched: Callable[[], Any], rounds: int, warm_up: int = clock.WARM_UP
    ) -> list[list[float]]:
        """Seconds of one device's call and of each rank's serial and pipelined step, by round.

        Args:
            batched: one device's call of both branches.
            rounds: of each part.
            warm_up: calls of each before.
        """
        phases = (Phase.SERIAL, Phase.PIPELINED)
        parts = [partial(self.step, rank, phase) for phase in phases for rank in range(2)]
        with torch.no_grad(), one_thread(self._device):
            return clock.samples([batched, *parts], self._device, rounds, warm_up)

    def times(self, samples: Sequence[Sequence[float]], link: devices.Link, own: float) -> Times:
        """The medians of `samples`.

        Args:
            samples: seconds of each part.
            link: stated or measured.
            own: what the driver adds to a step, seconds.
        """
        both, u, c, first, last = map(median, samples)
        gain = both / max(u, c)
        return Times(
            both=both,
            branch=(u, c),
            stages=(first, last),
            # Not measured: a stage gains by batching what the whole denoiser does.
            stages_of_both=(first * gain, last * gain),
            cut=link.seconds(self.cut_bytes),
            prediction=link.seconds(self.prediction_bytes),
            own=own,
        )


def eager(
    denoiser: nn.Module, call: DenoiserCall, captured: Captured
) -> tuple[Alone, Callable[[], Any]]:
    """Both ranks' programs of a step, eager, and one device's call of both branches.

    Args:
        denoiser: with its own forward in place, on the device that is measured.
        call: a guided call of it, `[uncond, cond]` in one batch of 2B.
        captured: its step.
    """
    values = Branches.of_batch(call, captured.rows).inputs()
    device = next(iter(values.values())).device
    positional, keyword = call.arguments
    with torch.no_grad(), one_thread(device):
        alone = Alone(build_programs(captured.program, "paper"), Lowering(), values, device)
    return alone, partial(denoiser.forward, *positional.values(), **keyword)
