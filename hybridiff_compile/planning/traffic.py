"""What the ranks send each other in a picture, to the byte, read off the programs that they run."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import fx

from hybridiff_compile import ops
from hybridiff_compile.ir import Phase, StepProgram, nbytes
from hybridiff_compile.layout import Layout
from hybridiff_compile.runtime import messages

Programs = Mapping[Phase, StepProgram]


def link_bytes(program: StepProgram, rank: int) -> int:
    """Bytes of the tensors that a rank's program sends for its peer to compute with."""
    return sum(nbytes(value) for value in _sent(program.graphs[rank], stamps=False))


def fed_in(
    programs: Programs, phases: Sequence[Phase], changing: Collection[str]
) -> list[list[str]]:
    """What the driver feeds rank 1 in each step of a run: what it lacks, or has in an older state.

    Args:
        programs: guarded, by phase.
        phases: of the steps.
        changing: inputs that every step changes, the noisy picture and the time; the others change
            from run to run only.
    """
    found, held, before = [], set[str](), None
    for phase in phases:
        names: list[str] = []
        if phase in programs:
            contract = programs[phase].contracts[1]
            held -= set(changing)
            names = [n for n in contract.inputs if n not in held and n != "stamp"]
            held |= set(names)
            pipelined = phase in (Phase.PIPELINED, Phase.DRAINED)
            if pipelined and before is not Phase.PIPELINED:
                names += contract.state
            before = phase
        found.append(names)
    return found


def picture_bytes(
    programs: Programs, phases: Sequence[Phase], changing: Collection[str], key: int = 0
) -> int:
    """Everything that a run sends, tensors and headers, as `RunReport.bytes_sent` counts it.

    On the CPU fed tensors travel inside of the driver's messages; on a GPU they are as many bytes.

    Args:
        programs, phases, changing: as in `fed_in`.
        key: of the captured signature; a message names it.
    """
    total = len(_pickled(messages.Ask()))
    for step, (phase, fed) in enumerate(
        zip(phases, fed_in(programs, phases, changing), strict=True)
    ):
        if phase not in programs:
            continue
        program = programs[phase]
        packed = bytes(_layout(program, fed).nbytes) if fed else None
        total += len(_pickled(messages.Step(key, phase, step, tuple(fed), packed)))
        for module in program.graphs:
            total += sum(nbytes(v) for stamps in (False, True) for v in _sent(module, stamps))
    return total


def batched_bytes(programs: Programs, phases: Sequence[Phase]) -> int:
    """About what a run sends that pipelines both branches in one batch: its tensors, no headers.

    Args:
        programs: of the paper's mode, which are of one branch.
        phases: of the steps.
    """
    cut = link_bytes(programs[Phase.PIPELINED], 0)
    prediction = link_bytes(programs[Phase.SERIAL], 1)
    count = sum(phase is Phase.PIPELINED for phase in phases)
    return 2 * ((count + 1) * cut + count * prediction)  # the first cut fills the pipeline


def _layout(program: StepProgram, names: Collection[str]) -> Layout:
    taken = (n for n in program.graphs[1].graph.nodes if n.op == "placeholder")
    values = {n.name: n.meta["val"] for n in taken}
    return Layout.of([values[name] for name in names])


def _sent(module: fx.GraphModule, stamps: bool) -> list[torch.Tensor]:
    """Values of a program's sends."""
    sends = [n for n in module.graph.nodes if ops.is_send(n)]
    own = {ops.group_name(a, 1 - a, stamp=True) for a in range(2)}
    return [n.args[0].meta["val"] for n in sends if (n.args[3] in own) is stamps]


def _pickled(message: messages.Message) -> bytes:
    return pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
