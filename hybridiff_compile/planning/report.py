"""A plan: what was found, as tables, sentences and figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from math import inf

from rich.console import Console
from rich.table import Table

from hybridiff_compile.bench import tables
from hybridiff_compile.bench.figures import Row
from hybridiff_compile.ir import Phase
from hybridiff_compile.planning import devices, published, runs
from hybridiff_compile.planning.cuts import CutPlan
from hybridiff_compile.planning.fidelity import Errors
from hybridiff_compile.planning.runs import Recommended, Times
from hybridiff_compile.planning.subject import Subject

#: A terminal that is narrower had better wrap the lines than cut the figures.
WIDTH = 150


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
        rows: of each mode, in the vocabulary of figures; one device comes first.
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
    rows: tuple[Row, ...]
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
    print_all(head, [_cuts(plan), _modes(plan)], sentences(plan), console)


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
    beside = published.beside(plan.rows)
    head = ("mode", "steps", "computed", "step ms", "all steps s", "speed-up", "sent GB")
    table = tables.empty("predicted", *head, *(("paper s", "paper GB") if beside else ()))
    table.add_column("held up by", no_wrap=True)
    subject = plan.subject
    for row in plan.rows:
        counts = (row.steps_by_phase or {"serial": subject.steps}).values()
        computed = subject.steps
        if row.mode in ("forecast", "hybrid"):
            run = runs.phases(row.mode, subject.family, subject.steps)
            computed -= run.count(Phase.FORECAST)
        ms = (row.predicted_step_ms_by_phase or {}).values()
        seconds, gb = beside.get(row.mode, (None, None))
        theirs = (tables.number(seconds, ".2f"), tables.number(gb, ".3f"))
        table.add_row(
            row.mode,
            " + ".join(str(count) for count in counts if count),
            str(computed),
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
    t, exact = plan.times, next(row for row in plan.rows if row.mode == "exact")
    yield (
        f"One device takes {t.both / max(t.branch):.2f} times as long for both branches as for "
        f"one: the most that exact can gain. It gains {exact.predicted_speedup:.2f}."
    )
    if plan.subject.batched:
        yield _advice(plan)
    else:
        yield (
            "This model's pipeline calls its denoiser twice a step. exact and hybrid begin both "
            "calls at once; paper and guided need one batch of both branches."
        )
    one, *ranks = plan.memory
    has = devices.DEVICES[plan.device].memory if plan.device in devices.DEVICES else inf
    fits = ""
    if max(plan.memory) > has:
        which = "it does not fit" if max(ranks) > has else "one device cannot run it, two can"
        fits = f" {plan.device} has {has / 1e9:.0f} GB: {which}."
    each = " and ".join(f"{held / 1e9:.2f}" for held in ranks)
    yield (
        f"Weights and activations take {one / 1e9:.2f} GB on one device, and {each} GB on two: "
        f"each holds all weights.{fits}"
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
