"""What two devices would make of a captured step, without running it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import fx

from hybridiff_compile.bench.figures import Mode
from hybridiff_compile.ir import Phase, nbytes
from hybridiff_compile.passes import build_programs
from hybridiff_compile.passes.balance import RATES, Cuts, node_costs, node_flops
from hybridiff_compile.planning import (
    cuts,
    devices,
    fidelity,
    published,
    roofline,
    runs,
    traffic,
)
from hybridiff_compile.planning.cuts import CutPlan
from hybridiff_compile.planning.fidelity import Errors
from hybridiff_compile.planning.published import ReferenceSplit
from hybridiff_compile.planning.runs import Recommended, RunPlan, Times
from hybridiff_compile.planning.subject import Subject

#: Programs whose traffic a mode's run has.
_PROGRAMS: Mapping[Mode, str] = {"forecast": "exact", "hybrid": "exact"}


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage at branch batch: flops, bytes of its weights, seconds of its compute."""

    flops: int
    weights: int
    seconds: float


@dataclass(frozen=True)
class Predicted:
    """What was found; a `report.Plan` is printed as tables and sentences.

    Attributes:
        subject: what was planned for.
        device, link: names.
        times: of the parts of a step, seconds.
        weights: bytes of the denoiser's parameters and buffers.
        flops: of one forward of batch B.
        stages: at the cut that `optimize` takes.
        cuts: the frontier between balance and crossing bytes.
        chosen: place in `cuts` of the one that `optimize` takes.
        step_bytes: tensors that cross in a step of each phase, fed inputs included.
        prediction: bytes of one branch's prediction.
        memory: bytes on one device that does all, on rank 0, on rank 1: the denoiser's weights and
            activations, and features kept between steps; encoders and VAE are not in it.
        runs: of each mode.
        psnr_db: the budget of error that `recommended` keeps, and it.
        errors: by which `recommended` keeps it.
        reference: the split by hand of the paper's code; None if it has none for the model.
    """

    subject: Subject
    device: str
    link: str
    times: Times
    weights: int
    flops: int
    stages: tuple[StagePlan, StagePlan]
    cuts: tuple[CutPlan, ...]
    chosen: int
    step_bytes: Mapping[Phase, int]
    prediction: int
    memory: tuple[int, int, int]
    runs: tuple[RunPlan, ...]
    psnr_db: float
    recommended: Recommended
    errors: Errors
    reference: ReferenceSplit | None


def of_subject(
    subject: Subject,
    on: devices.Device | Times,
    over: devices.Link,
    *,
    k: int | None = None,
    psnr_db: float = 40.0,
    figures: str | Path | None = None,
) -> Predicted:
    """Plan for a captured step.

    Args:
        subject: it.
        on: a device by its data sheet, or the times of the parts as measured on one.
        over: the link.
        k, psnr_db, figures: as in `plan`.
    """
    kind = "cuda" if isinstance(on, devices.Device) else _kind(subject)
    denoiser, captured = subject.denoiser, subject.captured.program
    programs = {m: build_programs(captured, m, device=kind) for m in ("exact", "paper", "guided")}
    pipelined = programs["paper"][Phase.PIPELINED].graphs
    pair = (_child(pipelined[0], "stage0"), _child(pipelined[1], "stage1"))
    crossing, prediction = traffic.cut_bytes(programs["paper"]), _prediction(denoiser)
    where, costs = Cuts(denoiser, RATES[kind]), node_costs(denoiser, RATES[kind])
    if isinstance(on, devices.Device):
        times = _times(denoiser, pair, on, over, (crossing, prediction), subject.batched)
        seconds = {n: w.seconds(on) for n, w in roofline.work(denoiser).items()}
    else:
        times, rate = on, sum(on.stages) / sum(costs.values())
        seconds = {n: rate * c for n, c in costs.items()}
    found, chosen = cuts.candidates(where, seconds, over, prediction)
    errors = fidelity.errors(
        _measured_on(subject) if figures is None else subject.name,
        subject.steps,
        runs.room(subject.family, subject.steps),
        fidelity.MEASURED if figures is None else (Path(figures),),
    )
    weights, activations = _weights(denoiser), roofline.peak_bytes(denoiser)
    return Predicted(
        subject=subject,
        device=on.name if isinstance(on, devices.Device) else devices.HERE,
        link=over.name,
        times=times,
        weights=weights,
        flops=sum(node_flops(denoiser).values()),
        stages=tuple(  # pyright: ignore[reportArgumentType]
            StagePlan(sum(node_flops(stage).values()), _weights(stage), each)
            for stage, each in zip(pair, times.stages, strict=True)
        ),
        cuts=found,
        chosen=chosen,
        step_bytes=_step_bytes(programs, subject),
        prediction=prediction,
        memory=(
            weights + (2 if subject.batched else 1) * activations,
            weights + activations + crossing,
            weights + activations + 2 * crossing,
        ),
        runs=tuple(_run(mode, programs, subject, times, k) for mode in runs.MODES),
        psnr_db=psnr_db,
        recommended=runs.recommended(
            subject.steps, times, found, errors.kinds, fidelity.error_of(psnr_db)
        ),
        errors=errors,
        reference=published.measure(subject.name, denoiser, costs, where.noisy),
    )


def _times(
    denoiser: fx.GraphModule,
    pair: tuple[fx.GraphModule, fx.GraphModule],
    on: devices.Device,
    over: devices.Link,
    sizes: tuple[int, int],
    batched: bool,
) -> Times:
    """By the data sheets."""
    works = [roofline.work(graph).values() for graph in (denoiser, *pair)]
    (branch, a, b), (both, a2, b2) = (
        [roofline.seconds(work, on, batch) for work in works] for batch in (1, 2)
    )
    return Times(
        both=both if batched else 2 * branch,
        branch=(branch, branch),
        stages=(a, b),
        stages_of_both=(a2, b2),
        cut=over.seconds(sizes[0]),
        prediction=over.seconds(sizes[1]),
        own=devices.OWN,
    )


def _run(
    mode: Mode, programs: Mapping[str, traffic.Programs], subject: Subject, t: Times, k: int | None
) -> RunPlan:
    phases = runs.phases(mode, subject.family, subject.steps, k if mode == "paper" else None)
    if mode == "asyncdiff":  # of programs that are traced at the batch of both branches
        sent = traffic.batched_bytes(programs["paper"], phases)
    else:
        own = programs[_PROGRAMS.get(mode, mode)]
        sent = traffic.picture_bytes(own, phases, subject.changing)
    return runs.run(mode, phases, t, sent)


def _step_bytes(programs: Mapping[str, traffic.Programs], subject: Subject) -> dict[Phase, int]:
    """Of a step in the midst of each phase: embeddings have been fed, the pipeline is full."""
    found = {}
    for each in (programs["paper"], programs["guided"]):
        for phase in each:
            before = Phase.PIPELINED if phase is Phase.DRAINED else phase
            (*_, fed) = traffic.fed_in(each, [Phase.SERIAL, before, phase], subject.changing)
            found[phase] = traffic.step_bytes(each, phase, fed)
    return found


def _kind(subject: Subject) -> str:
    return next(iter(subject.captured.program.graphs[0].parameters())).device.type


def _measured_on(subject: Subject) -> str:
    """The embedded pipeline whose denoiser is of the same kind."""
    return "tiny-sdxl" if subject.is_unet else "tiny-sd3"


def _child(module: fx.GraphModule, name: str) -> fx.GraphModule:
    child = module.get_submodule(name)
    assert isinstance(child, fx.GraphModule)
    return child


def _weights(module: fx.GraphModule) -> int:
    held = {n.target: nbytes(n.meta["val"]) for n in module.graph.nodes if n.op == "get_attr"}
    return sum(held.values())


def _prediction(denoiser: fx.GraphModule) -> int:
    (result,) = next(iter(reversed(denoiser.graph.nodes))).all_input_nodes
    return nbytes(result.meta["val"])
