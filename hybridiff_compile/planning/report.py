"""A plan as tables, sentences and figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from io import StringIO

from rich import box
from rich.console import Console
from rich.table import Table

from hybridiff_compile.bench.figures import Mode, PhaseName, Row
from hybridiff_compile.ir import Phase
from hybridiff_compile.planning import published, sentences
from hybridiff_compile.planning.predict import Plan
from hybridiff_compile.planning.runs import RunPlan
from hybridiff_compile.runtime.switching import counted

#: A terminal that is narrower had better wrap the lines than cut the figures.
WIDTH = 150

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
    for sentence in sentences.of(plan):
        console.print(sentence, highlight=False, soft_wrap=True)
    console.width = before


def title(plan: Plan) -> str:
    """What was planned for, in a line."""
    subject = plan.subject
    size = f"{subject.width} x {subject.height}"
    size += f", {subject.frames} frames" if subject.frames > 1 else ""
    return (
        f"{subject.name}, {size}, {subject.steps} steps, {_dtype(plan)}, on two {plan.device} over "
        f"{plan.link}: "
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
    head = ("after", "slower stage, by cost", "crosses MB", "step ms, modelled", "")
    table = table_of("cuts", *head)
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
        steps = " + ".join(str(n) for n in counts(run).values())
        if Phase.FORECAST in run.phases:
            steps += f", {sum(p is not Phase.FORECAST for p in run.phases)} run"
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
    k = sum(counts(run).get("pipelined", 0) for run in plan.runs if run.mode == "paper")
    size = subject.width, subject.height, subject.steps, k, _batch(plan)
    setting = (plan.device, plan.link, *size)
    return published.TABLE.get(subject.name, {}) if setting == _PAPERS else {}


#: Device, link, width, height, steps, k and batch of the paper's Table 1.
_PAPERS = ("rtx3090", "pcie3", 1024, 1024, 50, 5, 1)


def _half(plan: Plan) -> float:
    """Half of the whole denoiser's cost: what two perfect stages would have."""
    return min(sum(cut.cost) for cut in plan.cuts) / 2


def counts(run: RunPlan) -> dict[PhaseName, int]:
    """Number of steps that lie in each phase, of those that occur."""
    kinds = Counter(counted(run.phases))
    return {name: kinds[name] for name in ("serial", "pipelined", "forecast") if kinds[name]}


def _ms(run: RunPlan) -> dict[PhaseName, float]:
    """Seconds of a step by kind; a kind of several phases has that of most of its steps."""
    counts = Counter(run.phases)
    found: dict[PhaseName, float] = {}
    for phase, _ in reversed(counts.most_common()):
        found[phase.kind] = run.step_seconds[phase]  # pyright: ignore[reportArgumentType]
    return {name: found[name] for name in ("serial", "pipelined", "forecast") if name in found}


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
        by_phase = {name: 0 for name in ("serial", "pipelined", "forecast")} | counts(run)
        found.append(
            Row(
                mode=run.mode,
                ranks=2,
                k=by_phase["pipelined"] + by_phase["forecast"] or None,
                steps_by_phase=by_phase,  # pyright: ignore[reportArgumentType]
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
