"""What two devices would make of a captured step, without running it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import fx

from hybridiff_compile.bench.figures import Mode, Row
from hybridiff_compile.config import UNET_SWITCHING
from hybridiff_compile.ir import Phase, nbytes
from hybridiff_compile.passes import build_programs
from hybridiff_compile.passes.balance import RATES, Cuts, node_costs, node_flops
from hybridiff_compile.planning import cuts, devices, fidelity, roofline, runs, traffic
from hybridiff_compile.planning.report import Plan
from hybridiff_compile.planning.runs import Times
from hybridiff_compile.planning.subject import Subject
from hybridiff_compile.runtime.switching import counted


def of_subject(
    subject: Subject,
    on: devices.Device | Times,
    over: devices.Link,
    *,
    k: int | None = None,
    psnr_db: float = 40.0,
    figures: str | Path | None = None,
) -> Plan:
    """Plan for a captured step.

    Args:
        subject: it.
        on: a device by its data sheet, or the times of the parts as measured on one.
        over: the link.
        k, psnr_db, figures: as in `plan`.

    Raises:
        ConfigError: the figures say nothing of the model.
    """
    denoiser, captured = subject.denoiser, subject.captured.program
    weights_on = next(iter(captured.graphs[0].parameters())).device.type
    kind = "cuda" if isinstance(on, devices.Device) else weights_on
    programs = {m: build_programs(captured, m, device=kind) for m in ("exact", "paper", "guided")}
    cut = traffic.link_bytes(programs["paper"][Phase.PIPELINED], 0)
    prediction = traffic.link_bytes(programs["exact"][Phase.SERIAL], 1)
    costs: Mapping[fx.Node, float] = node_costs(denoiser, RATES[kind])
    if isinstance(on, devices.Device):
        times = _by_data_sheet(subject, programs["paper"], on, over, (cut, prediction))
        costs = roofline.seconds(denoiser, on)
    else:
        times, rate = on, sum(on.stages) / sum(costs.values())
        costs = {n: rate * c for n, c in costs.items()}
    found, chosen = cuts.candidates(Cuts(denoiser, RATES[kind]), costs, over, prediction)
    like = "tiny-sdxl" if subject.family is UNET_SWITCHING else "tiny-sd3"  # of the same kind
    errors = fidelity.errors(
        like if figures is None else subject.name,
        subject.steps,
        runs.room(subject.family, subject.steps),
        fidelity.MEASURED if figures is None else (Path(figures),),
    )
    held = {n.target: nbytes(n.meta["val"]) for n in denoiser.graph.nodes if n.op == "get_attr"}
    weights, activations = sum(held.values()), roofline.peak_bytes(denoiser)
    memory = (
        weights + (2 if subject.batched else 1) * activations,
        weights + activations + cut,
        weights + activations + 2 * cut,
    )
    device = on.name if isinstance(on, devices.Device) else devices.HERE
    what = {"command": "plan", "device": device, "link": over.name, **subject.what()}
    one = Row(
        mode="one-device",
        ranks=1,
        predicted_seconds=times.both * subject.steps,
        predicted_speedup=1,
        predicted_step_ms_by_phase={"serial": 1e3 * times.both},
        peak_device_mb=(memory[0] / 1e6,),
        **what,
    )
    what["peak_device_mb"] = tuple(rank / 1e6 for rank in memory[1:])
    return Plan(
        subject=subject,
        device=device,
        link=over.name,
        times=times,
        weights=weights,
        flops=sum(node_flops(denoiser).values()),
        cuts=found,
        chosen=chosen,
        memory=memory,
        rows=(one, *(_row(mode, programs, subject, times, k, what) for mode in runs.MODES)),
        psnr_db=psnr_db,
        recommended=runs.recommended(
            subject.steps, times, found, errors.kinds, fidelity.error_of(psnr_db)
        ),
        errors=errors,
    )


def _by_data_sheet(
    subject: Subject,
    paper: traffic.Programs,
    on: devices.Device,
    over: devices.Link,
    sizes: tuple[int, int],
) -> Times:
    """Times of the parts; sizes are the bytes of the cut and of a prediction."""
    pipelined = paper[Phase.PIPELINED].graphs
    stages: list[Any] = [pipelined[rank].get_submodule(f"stage{rank}") for rank in range(2)]
    (branch, a, b), (both, a2, b2) = (
        [sum(roofline.seconds(graph, on, batch).values()) for graph in (subject.denoiser, *stages)]
        for batch in (1, 2)
    )
    return Times(
        both=both if subject.batched else 2 * branch,
        branch=(branch, branch),
        stages=(a, b),
        stages_of_both=(a2, b2),
        cut=over.seconds(sizes[0]),
        prediction=over.seconds(sizes[1]),
        own=devices.OWN,
    )


def _row(
    mode: Mode,
    programs: Mapping[str, traffic.Programs],
    subject: Subject,
    t: Times,
    k: int | None,
    what: Mapping[str, Any],
) -> Row:
    phases = runs.phases(mode, subject.family, subject.steps, k if mode == "paper" else None)
    if mode == "asyncdiff":  # of programs that are traced at the batch of both branches
        sent = traffic.batched_bytes(programs["paper"], phases)
    else:  # what extrapolates computes its other steps by the program of exact
        own = programs.get(mode, programs["exact"])
        sent = traffic.picture_bytes(own, phases, subject.changing)
    return runs.row(
        mode,
        phases,
        t,
        t.both * len(phases),
        k=len(phases) - counted(phases).count("serial") or None,
        bytes_sent=sent,
        limited_by=runs.limited_by(mode, phases, t),
        **what,
    )
