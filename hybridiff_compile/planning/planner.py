"""`plan`: what two devices would make of a denoiser, without running it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import fx

from hybridiff_compile.bench import models
from hybridiff_compile.bench.figures import Mode
from hybridiff_compile.config import PAPER_STEPS
from hybridiff_compile.errors import ConfigError
from hybridiff_compile.ir import Phase, nbytes
from hybridiff_compile.passes import build_programs
from hybridiff_compile.passes.balance import RATES, Cuts, node_costs, node_flops
from hybridiff_compile.planning import (
    architectures,
    cuts,
    devices,
    fidelity,
    published,
    roofline,
    runs,
    schedules,
    traffic,
)
from hybridiff_compile.planning.cuts import CutPlan
from hybridiff_compile.planning.published import ReferenceSplit
from hybridiff_compile.planning.runs import Recommended, RunPlan
from hybridiff_compile.planning.steps import Times
from hybridiff_compile.planning.subject import Subject, of_architecture, of_pipeline

#: Programs whose traffic a mode's run has.
_PROGRAMS: Mapping[Mode, str] = {"forecast": "exact", "hybrid": "exact"}


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage at branch batch: flops, bytes of its weights, seconds of its compute."""

    flops: int
    weights: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What `plan` found. Printed, it is tables and sentences; `report.rows` makes figures of it.

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
        memory: bytes on one device that does all, on rank 0, on rank 1: the denoiser's weights and
            activations, and features kept between steps; encoders and VAE are not in it.
        runs: of each mode.
        psnr_db: the budget of error that `recommended` keeps, and it.
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
    memory: tuple[int, int, int]
    runs: tuple[RunPlan, ...]
    psnr_db: float
    recommended: Recommended
    reference: ReferenceSplit | None

    def __str__(self) -> str:
        """All tables and sentences."""
        from hybridiff_compile.planning import report

        return report.text(self)


def plan(
    pipe: Any,
    gpus: int = 2,
    *,
    device: str = "rtx3090",
    link: str = "pcie3",
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    images: int = 1,
    num_inference_steps: int | None = None,
    k: int | None = None,
    psnr_db: float = 40.0,
    figures: str | Path | None = None,
    **call: Any,
) -> Plan:
    """Predict what two devices make of a denoiser; nothing is run, and no weights are needed.

    Args:
        pipe: name of an architecture ("sdxl", "sd3-medium", ...; `planning.architectures.NAMES`) or
            of an embedded pipeline, a denoiser's config as diffusers writes it (mapping, or path of
            the file or its folder), or a pipeline.
        gpus: 2.
        device, link: names of `planning.devices`; data sheets, not measurements.
        height, width, frames: of what is made, pixels; None is the pipeline's default.
        images: pictures for each prompt, the branch batch B.
        num_inference_steps: of a run; None is 50.
        k: pipelined steps of the paper's mode; None is the paper's, scaled.
        psnr_db: how close to one device the recommended run has to be, as phases were measured.
        figures: file of `hybridiff sweep --json` to read that from; None takes what was measured on
            the embedded pipelines.
        call: further keywords of a pipeline's call.

    Raises:
        ConfigError: something of this is not known, or cannot be.
        UnsupportedPipelineError: the pipeline cannot be planned for.
        CaptureError: the denoiser cannot be traced.
    """
    if gpus != 2:
        raise ConfigError(f"gpus={gpus}: the passes make programs for 2 devices; plan for 2.")
    for name, value in (("images", images), ("num_inference_steps", num_inference_steps)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value} must be at least 1.")
    if not 0 < psnr_db < float("inf"):
        raise ConfigError(f"psnr_db={psnr_db} must be a number above 0, in dB.")
    on, over = devices.device(device), devices.link(link)
    size = {"height": height, "width": width, "frames": frames}
    if isinstance(pipe, str) and pipe in models.NAMES:  # embedded, with weights
        call = {**models.call_settings(pipe), **call}
        pipe, name = models.load(pipe), pipe
    else:
        name = type(pipe).__name__
    steps = num_inference_steps or PAPER_STEPS
    if isinstance(pipe, str):
        subject = of_architecture(architectures.named(pipe, **size), images, steps)
    elif isinstance(pipe, Mapping | Path):
        subject = of_architecture(architectures.of_config(pipe, **size), images, steps)
    else:
        given = {key: value for key, value in size.items() if value is not None}
        subject = of_pipeline(pipe, {**call, "num_images_per_prompt": images, **given}, steps, name)
    return of_subject(subject, on, over, k=k, psnr_db=psnr_db, figures=figures)


def of_subject(
    subject: Subject,
    on: devices.Device,
    over: devices.Link,
    *,
    measured: Times | None = None,
    k: int | None = None,
    psnr_db: float = 40.0,
    figures: str | Path | None = None,
) -> Plan:
    """Plan for a captured step.

    Args:
        subject: it.
        on, over: device and link.
        measured: times of the parts, in place of those by the data sheets.
        k, psnr_db, figures: as in `plan`.
    """
    kind = "cuda" if measured is None else _kind(subject)
    denoiser, captured = subject.denoiser, subject.captured.program
    programs = {m: build_programs(captured, m, device=kind) for m in ("exact", "paper", "guided")}
    pipelined = programs["paper"][Phase.PIPELINED].graphs
    pair = (_child(pipelined[0], "stage0"), _child(pipelined[1], "stage1"))
    crossing, prediction = traffic.cut_bytes(programs["paper"]), _prediction(denoiser)
    times = measured or _times(denoiser, pair, on, over, (crossing, prediction), subject.batched)
    where, costs = Cuts(denoiser, RATES[kind]), node_costs(denoiser, RATES[kind])
    seconds = {n: w.seconds(on) for n, w in roofline.work(denoiser).items()}
    if measured is not None:
        seconds = {n: c * sum(times.stages) / sum(costs.values()) for n, c in costs.items()}
    found, chosen = cuts.candidates(where, seconds, over, prediction)
    kinds = fidelity.kinds(
        _measured_on(subject) if figures is None else subject.name,
        runs.room(subject.family, subject.steps),
        fidelity.MEASURED if figures is None else Path(figures),
    )
    weights, activations = _weights(denoiser), roofline.peak_bytes(denoiser)
    return Plan(
        subject=subject,
        device=on.name,
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
        memory=(
            weights + (2 if subject.batched else 1) * activations,
            weights + activations + crossing,
            weights + activations + 2 * crossing,
        ),
        runs=tuple(_run(mode, programs, subject, times, k) for mode in schedules.MODES),
        psnr_db=psnr_db,
        recommended=runs.recommended(
            subject.steps, times, found, kinds, fidelity.error_of(psnr_db)
        ),
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
    phases = schedules.phases(mode, subject.family, subject.steps, k if mode == "paper" else None)
    sent = None
    if mode != "asyncdiff":
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
