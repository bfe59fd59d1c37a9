"""A plan: what was found, as tables, sentences and figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from math import inf
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from hybridiff_compile.bench import tables
from hybridiff_compile.bench.figures import PhaseName, Row
from hybridiff_compile.ir import Phase
from hybridiff_compile.planning import devices, published
from hybridiff_compile.planning.cuts import CutPlan
from hybridiff_compile.planning.fidelity import Errors
from hybridiff_compile.planning.runs import Recommended, RunPlan, Times
from hybridiff_compile.planning.subject import Subject
from hybridiff_compile.runtime.switching import counted

#: A terminal that is narrower had better wrap the lines than cut the figures.
WIDTH = 150
#: What steps are counted as, in the order of tables.
KINDS: tuple[PhaseName, ...] = get_args(PhaseName)


@dataclass(frozen=True)
class Plan:
    """What two devices would make of a denoiser. Printed, it is tables and sentences.

    Attributes:
        subject: what was planned for.
        device, link: names.
        times: of the parts of a step, seconds.
        weights: bytes of the denoiser's parameters and buffers.
        flops: of one forward of batch B.
        cuts: the frontier between balance and crossing bytes.
        chosen: place in `cuts` of the one that `optimize` takes.
        memory: bytes on one device that does all, on rank 0, on rank 1: the denoiser's weights and
            activations, and features kept between steps; encoders and VAE are not in it.
        runs: of each mode.
        psnr_db: the budget of error that `recommended` keeps, and it.
        errors: by which `recommended` keeps it.
    """

    subject: Subject
    device: str
    link: str
    times: Times
    weights: int
    flops: int
    cuts: tuple[CutPlan, ...]
    chosen: int
    memory: tuple[int, int, int]
    runs: tuple[RunPlan, ...]
    psnr_db: float
    recommended: Recommended
    errors: Errors

    def __str__(self) -> str:
        """All tables and sentences."""
        out = StringIO()
        show(self, Console(file=out, width=WIDTH))
        return out.getvalue()


def show(plan: Plan, console: Console) -> None:
    """Print all of it."""
    subject, what = plan.subject, plan.subject.what()
    frames = f", {subject.frames} frames" if subject.frames > 1 else ""
    head = (
        f"{subject.name}, {subject.width} x {subject.height}{frames}, {subject.steps} steps, "
        f"{what['dtype']}, on two {plan.device} over {plan.link}: "
        f"{plan.weights / 1e9:.2f} GB of weights, {plan.flops / 1e12:.2f} TFLOP a forward"
    )
    print_all(head, [_parts(plan), _cuts(plan), _modes(plan)], sentences(plan), console)


def print_all(head: str, shown: Sequence[Table], said: Iterable[str], console: Console) -> None:
    """Print a title, tables and sentences."""
    before, console.width = console.width, max(console.width, WIDTH)
    console.print(f"\n[bold]{head}", highlight=False)
    for table in shown:
        console.print()
        console.print(table)
    console.print()
    for sentence in said:
        console.print(sentence, highlight=False, soft_wrap=True)
    console.width = before


def _parts(plan: Plan) -> Table:
    """What each device computes in a step, and what it holds."""
    head = ("", "serial step ms", "pipelined step ms", "weights and activations GB")
    table, t = tables.empty("each device", *head), plan.times
    names = ("one device, both branches", "rank 0", "rank 1")
    parts = zip(names, (t.both, *t.branch), (None, *t.stages), plan.memory, strict=True)
    for name, serial, stage, held in parts:
        ms = (tables.number(seconds, ".2f", 1e3) for seconds in (serial, stage))
        table.add_row(name, *ms, f"{held / 1e9:.2f}")
    return table


def _cuts(plan: Plan) -> Table:
    """The frontier of cuts."""
    head = ("after", "slower stage, by cost", "crosses MB", "step ms, modelled", "")
    table = tables.empty("cuts", *head)
    half = min(sum(cut.cost) for cut in plan.cuts) / 2  # what two perfect stages would have
    places = {"optimize's": plan.chosen, "solver's": plan.recommended.cut}
    for i, cut in enumerate(plan.cuts):
        slower, ms = max(cut.cost) / half - 1, 1e3 * (max(cut.cycles) + plan.times.own)
        cells = (f"{slower:+.1%}", f"{cut.crossing / 1e6:.2f}", f"{ms:.2f}")
        table.add_row(cut.where, *cells, ", ".join(n for n, at in places.items() if at == i))
    return table


def _modes(plan: Plan) -> Table:
    """Each mode's run, and what the paper measured where it is for the same."""
    found = rows(plan)
    beside = published.beside(found)
    head = ("mode", "steps", "computed", "step ms", "all steps s", "speed-up", "sent GB")
    table = tables.empty("predicted", *head, *(("paper s", "paper GB") if beside else ()))
    table.add_column("held up by", no_wrap=True)
    extrapolated = [0, *(run.phases.count(Phase.FORECAST) for run in plan.runs)]
    for row, left_out in zip(found, extrapolated, strict=True):
        counts = (row.steps_by_phase or {"serial": plan.subject.steps}).values()
        ms = (row.predicted_step_ms_by_phase or {}).values()
        seconds, gb = beside.get(row.mode, (None, None))
        theirs = (tables.number(seconds, ".2f"), tables.number(gb, ".3f"))
        table.add_row(
            row.mode,
            " + ".join(str(count) for count in counts if count),
            str(plan.subject.steps - left_out),
            " / ".join(f"{step:.1f}" for step in ms),
            tables.number(row.predicted_seconds, ".2f"),
            tables.number(row.predicted_speedup, ".2f"),
            tables.number(row.bytes_sent, ".3f", 1e-9),
            *(theirs if beside else ()),
            row.limited_by,
        )
    return table


def sentences(plan: Plan) -> Iterator[str]:
    """What two devices can gain at best, what to ask for, and what these figures are."""
    t, exact = plan.times, next(run for run in plan.runs if run.mode == "exact")
    yield (
        f"One device takes {t.both / max(t.branch):.2f} times as long for both branches as for "
        "one: the most that running them side by side can gain. Exact gains "
        f"{exact.speedup:.2f}."
    )
    if plan.subject.batched:
        yield _advice(plan)
    else:
        yield (
            "This model's pipeline calls its denoiser twice a step, which optimize() runs on one "
            "rank so far; the figures are those of the ranks' programs."
        )
    one, *ranks = plan.memory
    has = devices.DEVICES[plan.device].memory if plan.device in devices.DEVICES else inf
    if max(ranks) > has:
        yield (
            f"It does not fit: {max(ranks) / 1e9:.1f} GB of weights and activations, and "
            f"{plan.device} has {has / 1e9:.0f} GB. Both ranks hold all weights, as both run "
            "serial steps."
        )
    elif one > has:
        yield (
            f"One device cannot run it, two can: it holds {one / 1e9:.1f} GB, and {plan.device} "
            f"has {has / 1e9:.0f} GB."
        )
    yield (
        "The paper's mode begins at its latest step here, and hybrid extrapolates all that it may: "
        "both depend on the picture."
    )
    sheets = (
        "Device and link are data sheets, of which kernels are taken to reach fixed shares; "
        "hybridiff profile measures yours."
    )
    source = "The parts were measured here." if plan.device == devices.HERE else sheets
    yield f"Encoders, scheduler and VAE are not in these times. {source}"


def _advice(plan: Plan) -> str:
    best, errors = plan.recommended, plan.errors
    settings = ", ".join(f"{name}={value!r}" for name, value in best.settings.items())
    source = f"by the errors of phases in {errors.steps} steps of {errors.model}"
    if errors.steps is None:
        source = f"as no run of so few steps was measured on {errors.model}"
    if errors.model != plan.subject.name:
        source += ", not of this model"
    within = f"within {plan.psnr_db:g} dB of one device ({source})"
    if best.speedup <= 1:
        return (
            f"Two devices do not pay {within}: the fastest, optimize(pipe, gpus=2, {settings}), "
            f"takes {1 / best.speedup:.2f} times as long as one."
        )
    return (
        f"Fastest {within}: optimize(pipe, gpus=2, {settings}), {best.speedup:.2f} times one "
        "device; see model.verify(prompt). mode='hybrid' finds such steps by itself."
    )


def rows(plan: Plan) -> list[Row]:
    """The modes in the vocabulary of figures; sizes of one device come first."""
    what: dict[str, Any] = {"command": "plan", "device": plan.device, "link": plan.link}
    what |= plan.subject.what()
    one, *ranks = (held / 1e6 for held in plan.memory)
    found = [
        Row(
            mode="one-device",
            ranks=1,
            predicted_seconds=plan.times.both * plan.subject.steps,
            predicted_speedup=1,
            predicted_step_ms_by_phase={"serial": 1e3 * plan.times.both},
            peak_device_mb=(one,),
            **what,
        )
    ]
    for run in plan.runs:
        own = by_phase(run)
        found.append(
            Row(
                k=len(run.phases) - own["steps_by_phase"]["serial"] or None,
                bytes_sent=run.sent,
                predicted_seconds=run.seconds,
                predicted_speedup=run.speedup,
                limited_by=run.limited_by,
                peak_device_mb=tuple(ranks),
                **own,
                **what,
            )
        )
    return found


def by_phase(run: RunPlan) -> dict[str, Any]:
    """Keys of a figure: a mode's number of steps and milliseconds of one, by what they count as."""
    counts, phases = Counter(counted(run.phases)), Counter(run.phases).most_common()
    # A kind of several phases has the time of most of its steps.
    most = {phase.kind: phase for phase, _ in reversed(phases)}
    return {
        "mode": run.mode,
        "ranks": 2,
        "steps_by_phase": {name: counts[name] for name in KINDS},
        "predicted_step_ms_by_phase": {
            name: 1e3 * run.step_seconds[most[name]] for name in KINDS if name in most
        },
    }
