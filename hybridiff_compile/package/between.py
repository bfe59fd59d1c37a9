"""What the programs of one call, of all ranks and phases, hand to each other and to the driver."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hybridiff_compile.ir import GUIDED, Phase
from hybridiff_compile.package import program as records
from hybridiff_compile.package.sound import only_tensors, returned, same, shown, value_of


def check_handed(ranks: Sequence[Mapping[Phase, records.Program]]) -> None:
    """What one step of a call leaves to the next, on the same rank or, to begin with, on another.

    Args:
        ranks: programs by phase.
    """
    kept: list[dict[str, Any]] = [{}, {}]
    for rank, programs in enumerate(ranks):
        for program in programs.values():
            given = returned(program)
            for name in program.contract.new_state:
                if kept[rank].setdefault(name, given.get(name)) != given.get(name):
                    raise ValueError(f"state {name}: two phases of rank {rank} differ on its shape")
    for rank, programs in enumerate(ranks):
        for phase, program in programs.items():
            values = {n.name: value_of(n) for n in program.nodes}
            # The first pipelined step of rank 1 begins with what rank 0's serial step has kept.
            begins = rank == 1 and phase in (Phase.PIPELINED, Phase.DRAINED)
            keeper = 0 if begins else rank
            for name in program.contract.state:
                if name not in kept[keeper]:
                    raise ValueError(f"state {name}: no phase of rank {keeper} keeps it")
                same(f"state {name}", values.get(name), kept[keeper][name])


def check_stages(programs: Iterable[records.Program]) -> None:
    """Every stage is called alike wherever it is called: it was compiled for values of one shape.

    Args:
        programs: of all ranks and phases of a call.
    """
    called: dict[str, tuple[Any, ...]] = {}
    for program in programs:
        values = {n.name: value_of(n) for n in program.nodes}
        for node in program.nodes:
            child = program.children.get(str(node.target))
            if isinstance(node, records.Module) and isinstance(child, records.Stage):
                reads = [values[ref.node] for ref in node.args.items]
                call = (reads, value_of(node), child.weights, child.keys)
                if called.setdefault(child.file, call) != call:
                    raise ValueError(f"stage {child.file} is called in two ways that differ")


def check_results(
    ranks: Sequence[Mapping[Phase, records.Program]],
    leaves: Sequence[tuple[int, ...] | None],
    parts: int,
) -> None:
    """What the driver reads: one prediction of the whole batch, or of half in a guided phase.

    Args:
        ranks: programs by phase.
        leaves: shapes of one row of what the denoiser returns; see `capture.prediction.Form`.
        parts: of the batch.
    """
    shapes = [leaf for leaf in leaves if leaf is not None]
    row = shapes[0] if len(shapes) == 1 else (sum(math.prod(shape) for shape in shapes),)
    counts = set()
    for rank, programs in enumerate(ranks):
        for phase, program in programs.items():
            results = program.contract.results
            if len(results) != (1 if rank == 0 else 0):
                raise ValueError(f"{phase.name} of rank {rank} has {len(results)} results")
            for name in results:
                value = returned(program).get(name)
                only_tensors([value])
                assert value is not None
                if not value[0] or value[0][1:] != row:
                    raise ValueError(f"{phase.name}: result {name} is {shown(value)} by rows")
                counts.add(value[0][0] * (2 if phase in GUIDED else 1))
    if len(counts) != 1 or counts.pop() % parts:
        raise ValueError(f"the phases' results are not of one batch of {parts} parts")
