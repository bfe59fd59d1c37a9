"""What the processes of a model's ranks hold and have compiled: the driver's first, the worker's.

A model does not tell these; they are read from its session, as only measurements need them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hybridiff_compile import Model, lower
from hybridiff_compile.lower.aot import Packaged
from hybridiff_compile.runtime import messages
from hybridiff_compile.runtime.fleet import Fleet

_KB = 1024


def pids(model: Model | None) -> list[int]:
    """The processes of the ranks: this one, and the one that a model on two ranks started."""
    if model is None:
        return [os.getpid()]
    process = _fleet(model)._process
    assert process is not None, "a worker of a launcher is another machine's matter"
    return [os.getpid(), process.pid]


def compilations(model: Model | None) -> list[int]:
    """Graphs that each rank has compiled so far, or taken compiled from the ranks' cache."""
    if model is None:
        return [lower.compilations()]
    return [lower.compilations(), _fleet(model).ask(messages.Ask()).compilations]


def packaged(model: Model) -> list[int]:
    """Compiled stages that each rank has from a package."""
    programs = [program for by_phase in model.programs() for program in by_phase.values()]

    def stages(rank: int) -> set[Path]:
        inside = (m for p in programs for m in p.graphs[rank].modules())
        return {m.path for m in inside if isinstance(m, Packaged)}

    return [len(stages(rank)) for rank in range(len(programs[0].graphs))]


class Watch:
    """Memory of processes.

    Attributes:
        peak_pss: the most proportional memory of each that was seen when looked at, bytes.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = tuple(pids)
        self.peak_pss = [0] * len(self._pids)
        self.look()

    def look(self) -> None:
        """Note what each holds now; nobody keeps a peak of this figure."""
        now = [field(f"/proc/{pid}/smaps_rollup", "Pss") for pid in self._pids]
        self.peak_pss = [max(pair) for pair in zip(self.peak_pss, now, strict=True)]

    def peak_rss(self) -> list[int]:
        """The most resident memory of each since it started, bytes."""
        return [field(f"/proc/{pid}/status", "VmHWM") for pid in self._pids]


def field(file: str, name: str) -> int:
    """A field of one of the system's files about a process, bytes."""
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(value) * _KB


def _fleet(model: Model) -> Fleet:
    session = model.session()
    return session.ranks.connect(session.entries).fleet
