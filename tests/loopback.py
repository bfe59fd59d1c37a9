"""Two ranks as two threads of one process: the real ops over real gloo links, no worker process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hybridiff_compile import links, ops
from hybridiff_compile.ir import Phase, RankProgram, StepProgram
from hybridiff_compile.lower.eager import lower
from hybridiff_compile.runtime.rank import Rank

CPU = torch.device("cpu")

#: What a rank returned, by name.
Returned = Mapping[str, torch.Tensor]


class Pair:
    """Ranks 0 and 1, each with its own thread, links and kept values."""

    def __init__(self, programs: Mapping[Phase, StepProgram], device: torch.device) -> None:
        store = dist.HashStore()
        self.threads = [ThreadPoolExecutor(1) for _ in range(2)]
        self.ranks = [Rank(), Rank()]

        def join(rank: int) -> links.Groups:
            torch.set_num_threads(1)
            groups = links.connect(store, rank, 2, device, loopback=True)
            ops.activate(groups)
            return groups

        self.groups = self.on_both(join)
        for rank, at_work in enumerate(self.ranks):
            at_work.load(0, [lower(RankProgram.of(p, rank)) for p in programs.values()])

    def start(self, rank: int, job: Callable[..., Any], *args: Any) -> Future[Any]:
        return self.threads[rank].submit(job, *args)

    def on_both(self, job: Callable[[int], Any]) -> tuple[Any, Any]:
        first, second = [self.start(r, job, r) for r in range(2)]
        return first.result(60), second.result(60)

    def step(self, phases: tuple[Phase, Phase], steps: tuple[int, int], fed: Returned) -> Any:
        """Run one step on both ranks; each may be told another phase and step."""

        def one(rank: int) -> Returned | Exception:
            contract = self.ranks[rank].variant(0, phases[rank]).contract
            mine = {n: fed[n] for n in contract.inputs if n in fed}
            try:
                with torch.no_grad():
                    return self.ranks[rank].step(0, phases[rank], steps[rank], mine)
            except Exception as e:
                return e

        return self.on_both(one)


@contextmanager
def pair(programs: Mapping[Phase, StepProgram], device: torch.device = CPU) -> Iterator[Pair]:
    """Connect two ranks; the links and the thread count are put back as they were.

    Args:
        device: whose kind of links to use; the tensors are on the CPU all the same.
    """
    threads, timeout = torch.get_num_threads(), links.STEP_TIMEOUT
    torch.set_num_threads(1)
    links.STEP_TIMEOUT = timedelta(seconds=30)  # a broken program hangs no longer than this
    ranks = Pair(programs, device)
    try:
        yield ranks
    finally:
        for thread in ranks.threads:
            thread.shutdown()
        links.STEP_TIMEOUT = timeout
        torch.set_num_threads(threads)
