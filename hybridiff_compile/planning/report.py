"""A plan as tables, sentences and figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from io import StringIO

from rich import box
from rich.console import Console
from rich.table import Table

from hybridiff_compile.bench.figures import Mode, PhaseName, Row
from hybridiff_compile.ir import Phase
from hybridiff_compile.planning import devices, published, runs
from hybridiff_compile.planning.predict import Plan
from hybridiff_compile.planning.runs import RunPlan
from hybridiff_compile.runtime.switching import counted

#: A terminal that is narrower had better wrap the lines than cut the figures.
WIDTH = 132

#: Names of a step's kinds, for a reader.
STEPS = {
    Phase.SERIAL: "serial",
    Phase.PIPELINED: "pipelined (paper)",
    Phase.DRAINED: "its last",
    Phase.GUIDED_U: "guided, branch u",
    Phase.GUIDED_C: "guided, branch c",
}


def text(plan: Plan) -> str:
    """All of it."""
    console = Console(file=StringIO(), width=WIDTH)
    show(plan, console)
    out = console.file
    assert isinstance(out, StringIO)
    return out.getvalue()


def show(plan: Plan, console: Console) -> None:
    """Print all of it."""
    before, console.width = console.width, max(console.width, WIDTH)
    console.print(f"\n[bold]{title(plan)}", highlight=False)
    for table in (stages(plan), cuts(plan), crossing(plan), modes(plan)):
        console.print()
        console.print(table)
    console.print()
    for sentence in sentences(plan):
        console.print(sentence, highlight=False, soft_wrap=True)
    console.width = before


def title(plan: Plan) -> str:
    """What was planned for, in a line."""
    subject = plan.subject
    size = f"{subject.width} x {subject.height}"
    size += f", {subject.frames} frames" if subject.frames > 1 else ""
    return (
        f"{subject.name}, {size}, {subject.steps} steps, on two {plan.device} over {plan.link}: "
        f"{plan.weights / 1e9:.2f} GB of weights, {plan.flops / 1e12:.2f} TFLOP a forward"
    )


def table_of(head: str, *columns: str) -> Table:
    """An empty table; the first column is words."""
    table = Table(title=head, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table


def stages(plan: Plan) -> Table:
    """The two stages at the cut that `optimize` takes, and what each rank holds."""
    table = table_of("stages and memory", "", "TFLOP", "weights GB", "compute ms", "held GB")
    one, *ranks = plan.memory
    both = (2 * plan.flops, plan.weights, 1e3 * plan.times.both, one)
    rows = [("one device, both branches", *both)]
    for rank, (stage, held) in enumerate(zip(plan.stages, ranks, strict=True)):
        row = (stage.flops, stage.weights, 1e3 * stage.seconds, held)
        rows.append((f"stage{rank}, on rank {rank}", *row))
    for name, flops, weights, ms, held in rows:
        cells = (f"{flops / 1e12:.2f}", f"{weights / 1e9:.2f}", f"{ms:.2f}", f"{held / 1e9:.2f}")
        table.add_row(name, *cells)
    return table


def cuts(plan: Plan) -> Table:
    """The frontier of cuts, and the reference's split beside it."""
    table = table_of("cuts", "after", "slower stage", "crosses MB", "step ms", "")
    half = _half(plan)
    for i, cut in enumerate(plan.cuts):
        notes = [
            note
            for note, at in (("optimize's", plan.chosen), ("solver's", plan.recommended.cut))
            if at == i
        ]
        ms = 1e3 * (max(cut.cycles) + plan.times.own)
        share = f"{max(cut.cost) / half - 1:+.1%}"
        table.add_row(cut.where, share, f"{cut.crossing / 1e6:.2f}", f"{ms:.2f}", ", ".join(notes))
    if plan.reference is not None:
        reference = plan.reference
        share = f"{max(reference.cost) / half - 1:+.1%}"
        sent = f"{reference.sent / 1e6:.2f}"
        table.add_row("the reference code's split", share, sent, "-", "as it sends")
    return table


def crossing(plan: Plan) -> Table:
    """Bytes of a step, in the midst of each phase."""
    table = table_of("bytes of a step, both ways", "step", "MB")
    for phase, sent in plan.step_bytes.items():
        table.add_row(STEPS[phase], f"{sent / 1e6:.2f}")
    return table


def modes(plan: Plan) -> Table:
    """Each mode's run, and what the paper measured where it is for the same."""
    head = ("mode", "steps", "step ms", "all steps s", "speed-up", "sent GB", "held up by")
    beside = _published(plan)
    table = table_of("predicted", *head, *(("paper s", "paper GB") if beside else ()))
    table.columns[6].justify = "left"
    one, count = plan.times.both, plan.subject.steps
    lines: list[tuple[Mode, str, str, float, float, int | None, str]]
    lines = [("one-device", str(count), f"{1e3 * one:.1f}", one * count, 1.0, None, "")]
    for run in plan.runs:
        steps = " + ".join(str(n) for n in _counts(run).values())
        ms = " / ".join(f"{1e3 * s:.1f}" for s in _ms(run).values())
        lines.append((run.mode, steps, ms, run.seconds, run.speedup, run.sent, run.limited_by))
    for mode, steps, ms, seconds, speedup, sent, limit in lines:
        cells = [mode, steps, ms, f"{seconds:.2f}", f"{speedup:.2f}", _gb(sent), limit]
        if beside:
            theirs, gb = beside.get(mode, (None, None))
            cells += ["" if theirs is None else f"{theirs:.2f}", "" if gb is None else f"{gb:.3f}"]
        table.add_row(*cells)
    return table


def _gb(sent: int | None) -> str:
    return "" if sent is None else f"{sent / 1e9:.3f}"


def _published(plan: Plan) -> Mapping[Mode, tuple[float, float | None]]:
    """The paper's figures, if the plan is for what they were measured on."""
    subject = plan.subject
    setting = (plan.device, plan.link, subject.width, subject.height, subject.steps, _batch(plan))
    return published.TABLE.get(subject.name, {}) if setting == _PAPERS else {}


#: Device, link, width, height, steps and batch of the paper's Table 1.
_PAPERS = ("rtx3090", "pcie3", 1024, 1024, 50, 1)


def _half(plan: Plan) -> float:
    """Half of the whole denoiser's cost: what two perfect stages would have."""
    return min(sum(cut.cost) for cut in plan.cuts) / 2


def _counts(run: RunPlan) -> dict[PhaseName, int]:
    kinds = Counter(counted(run.phases))
    return {name: kinds[name] for name in ("serial", "pipelined", "forecast") if kinds[name]}


def _ms(run: RunPlan) -> dict[PhaseName, float]:
    """Seconds of a step by kind; a kind of several phases has that of most of its steps."""
    counts = Counter(run.phases)
    found: dict[PhaseName, float] = {}
    for phase, _ in reversed(counts.most_common()):
        found[phase.kind] = run.step_seconds[phase]  # pyright: ignore[reportArgumentType]
    return {name: found[name] for name in ("serial", "pipelined", "forecast") if name in found}


def sentences(plan: Plan) -> Iterator[str]:
    """What the ceiling is, what holds it back, and what to ask for."""
    t, by_mode = plan.times, {run.mode: run for run in plan.runs}
    batching = t.both / max(t.branch)
    yield (
        f"One device's call of both branches takes {batching:.2f} times a branch's own, which is "
        f"the most that running them side by side can gain; exact gains "
        f"{by_mode['exact'].speedup:.2f}."
    )
    paper = by_mode["paper"]
    most = runs.ceiling(t, paper.phases)
    yield (
        f"The paper's mode with {_counts(paper).get('pipelined', 0)} pipelined steps could gain "
        f"{most:.2f} if stages were even and the link free; {paper.speedup:.2f} is predicted. "
        f"{_link_share(plan)}"
    )
    if plan.reference is not None and plan.reference.needed < plan.reference.sent:
        yield (
            f"The reference code's split is no cut by depth: one rank has both ends. Of the "
            f"{plan.reference.sent / 1e6:.1f} MB that it sends a step, its ranks read "
            f"{plan.reference.needed / 1e6:.2f} MB of each other, two steps late."
        )
    yield (
        "The paper's mode begins at its latest step here, and hybrid extrapolates all that it may: "
        "both depend on the picture."
    )
    best = plan.recommended
    settings = ", ".join(f"{name}={value!r}" for name, value in best.settings.items())
    yield (
        f"Fastest within {plan.psnr_db:g} dB of one device, by the errors that phases were "
        f"measured to make: optimize(pipe, gpus=2, {settings}), {best.speedup:.2f} times one "
        "device. mode='hybrid' finds such steps by itself."
    )
    if plan.device in devices.DEVICES:
        yield from _too_large(max(plan.memory), devices.device(plan.device))
    if not plan.subject.batched:
        yield (
            "This model's pipeline calls its denoiser twice a step, which optimize() runs on one "
            "rank so far; the figures are those of the ranks' programs."
        )
    yield (
        "Encoders, scheduler and VAE are not in these times. Device and link are data sheets, of "
        "which kernels are taken to reach fixed shares; hybridiff profile measures yours."
        if plan.device != "here"
        else "Encoders, scheduler and VAE are not in these times; the parts were measured here."
    )


def _too_large(held: int, device: devices.Device) -> Iterator[str]:
    if held > device.memory:
        yield (
            f"It does not fit: {held / 1e9:.1f} GB of weights and activations, and {device.name} "
            f"has {device.memory / 1e9:.0f} GB. Both ranks hold all weights, as both run serial "
            "steps."
        )


def _link_share(plan: Plan) -> str:
    t = plan.times
    share = t.cut / (t.cut + t.stages[0])
    return f"The cut is {share:.1%} of stage0's way, over {plan.link}."


def rows(plan: Plan) -> list[Row]:
    """The modes in the vocabulary of figures; sizes of one device come first."""
    subject = plan.subject
    what = {
        "command": "plan",
        "model": subject.name,
        "steps": subject.steps,
        "height": subject.height,
        "width": subject.width,
        "batch": _batch(plan),
        "dtype": _dtype(plan),
        "device": plan.device,
        "link": plan.link,
    }
    one, *ranks = plan.memory
    seconds = plan.times.both * subject.steps
    found = [
        Row(
            mode="one-device",
            ranks=1,
            predicted_seconds=seconds,
            predicted_speedup=1,
            predicted_step_ms_by_phase={"serial": 1e3 * plan.times.both},
            peak_device_mb=(one / 1e6,),
            **what,
        )
    ]
    for run in plan.runs:
        counts = {name: 0 for name in ("serial", "pipelined", "forecast")} | _counts(run)
        found.append(
            Row(
                mode=run.mode,
                ranks=2,
                steps_by_phase=counts,  # pyright: ignore[reportArgumentType]
                bytes_sent=run.sent,
                predicted_seconds=run.seconds,
                predicted_speedup=run.speedup,
                predicted_step_ms_by_phase={n: 1e3 * s for n, s in _ms(run).items()},
                limited_by=run.limited_by,
                peak_device_mb=tuple(held / 1e6 for held in ranks),
                **what,
            )
        )
    return found


def _batch(plan: Plan) -> int:
    return plan.subject.picture.shape[0]


def _dtype(plan: Plan) -> str:
    return str(plan.subject.picture.dtype).removeprefix("torch.")
