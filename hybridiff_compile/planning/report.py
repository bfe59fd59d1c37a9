"""A plan as tables and figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

from hybridiff_compile.bench import tables
from hybridiff_compile.bench.figures import Mode, PhaseName, Row
from hybridiff_compile.ir import Phase
from hybridiff_compile.planning import published, sentences
from hybridiff_compile.planning.predict import Predicted
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
#: Device, link, width, height, steps, k and batch of the paper's Table 1.
_PAPERS = ("rtx3090", "pcie3", 1024, 1024, 50, 5, 1)


class Plan(Predicted):
    """What was found. Printed, it is tables and sentences; `rows` makes figures of it."""

    @classmethod
    def of(cls, found: Predicted) -> Plan:
        """The same, to be printed."""
        return cls(**vars(found))

    def __str__(self) -> str:
        """All tables and sentences."""
        return text(self)


def text(plan: Predicted) -> str:
    """All of it."""
    console = Console(file=StringIO(), width=WIDTH)
    show(plan, console)
    out = console.file
    assert isinstance(out, StringIO)
    return out.getvalue()


def show(plan: Predicted, console: Console) -> None:
    """Print all of it."""
    shown = [stages(plan), cuts(plan), crossing(plan), modes(plan)]
    print_all(title(plan), shown, sentences.of(plan), console)


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


def title(plan: Predicted) -> str:
    """What was planned for, in a line."""
    subject = plan.subject
    size = f"{subject.width} x {subject.height}"
    size += f", {subject.frames} frames" if subject.frames > 1 else ""
    return (
        f"{subject.name}, {size}, {subject.steps} steps, {subject.dtype}, on two {plan.device} "
        f"over {plan.link}: "
        f"{plan.weights / 1e9:.2f} GB of weights, {plan.flops / 1e12:.2f} TFLOP a forward"
    )


def stages(plan: Predicted) -> Table:
    """The two stages at the cut that `optimize` takes, and what each rank holds."""
    table = tables.empty("stages and memory", "", "TFLOP", "weights GB", "compute ms", "held GB")
    names = ("one device, both branches", "stage0, on rank 0", "stage1, on rank 1")
    parts = [(2 * plan.flops, plan.weights, plan.times.both)]
    parts += [(stage.flops, stage.weights, stage.seconds) for stage in plan.stages]
    for name, (flops, weights, seconds), held in zip(names, parts, plan.memory, strict=True):
        cells = (flops / 1e12, weights / 1e9, 1e3 * seconds, held / 1e9)
        table.add_row(name, *(f"{value:.2f}" for value in cells))
    return table


def cuts(plan: Predicted) -> Table:
    """The frontier of cuts, and the reference's split beside it."""
    head = ("after", "slower stage, by cost", "crosses MB", "step ms, modelled", "")
    table = tables.empty("cuts", *head)
    half = min(sum(cut.cost) for cut in plan.cuts) / 2  # what two perfect stages would have

    def add(where: str, cost: Sequence[float], crossing: int, ms: str, note: str) -> None:
        share = f"{max(cost) / half - 1:+.1%}"
        table.add_row(where, share, f"{crossing / 1e6:.2f}", ms, note)

    places = {"optimize's": plan.chosen, "solver's": plan.recommended.cut}
    for i, cut in enumerate(plan.cuts):
        ms = 1e3 * (max(cut.cycles) + plan.times.own)
        note = ", ".join(name for name, at in places.items() if at == i)
        add(cut.where, cut.cost, cut.crossing, f"{ms:.2f}", note)
    if plan.reference is not None:
        reference = plan.reference
        add("the reference code's split", reference.cost, reference.sent, "-", "as it sends")
    return table


def crossing(plan: Predicted) -> Table:
    """Bytes of a step, in the midst of each phase."""
    table = tables.empty("bytes of a step, both ways", "step", "MB")
    for phase, sent in plan.step_bytes.items():
        table.add_row(STEPS[phase], f"{sent / 1e6:.2f}")
    return table


def modes(plan: Predicted) -> Table:
    """Each mode's run, and what the paper measured where it is for the same."""
    head = ("mode", "steps", "step ms", "all steps s", "speed-up", "sent GB", "held up by")
    beside = _published(plan)
    table = tables.empty("predicted", *head, *(("paper s", "paper GB") if beside else ()))
    table.columns[6].justify = "left"

    def add(mode: Mode, *cells: str) -> None:
        seconds, gb = beside.get(mode, (None, None))
        theirs = (tables.number(seconds, ".2f"), tables.number(gb, ".3f")) if beside else ()
        table.add_row(mode, *cells, *(c.replace(tables.NOT_MEASURED, "") for c in theirs))

    one, count = plan.times.both, plan.subject.steps
    add("one-device", str(count), f"{1e3 * one:.1f}", f"{one * count:.2f}", "1.00", "", "")
    for run in plan.runs:
        steps = " + ".join(str(n) for n in counts(run).values())
        if Phase.FORECAST in run.phases:
            steps += f", {sum(p is not Phase.FORECAST for p in run.phases)} run"
        ms = " / ".join(f"{1e3 * s:.1f}" for s in _seconds(run).values())
        taken = (f"{run.seconds:.2f}", f"{run.speedup:.2f}", f"{run.sent / 1e9:.3f}")
        add(run.mode, steps, ms, *taken, run.limited_by)
    return table


def _published(plan: Predicted) -> Mapping[Mode, tuple[float, float | None]]:
    """The paper's figures, if the plan is for what they were measured on."""
    subject = plan.subject
    k = sum(counts(run).get("pipelined", 0) for run in plan.runs if run.mode == "paper")
    size = subject.width, subject.height, subject.steps, k, subject.batch
    setting = (plan.device, plan.link, *size)
    return published.TABLE.get(subject.name, {}) if setting == _PAPERS else {}


def counts(run: RunPlan) -> dict[PhaseName, int]:
    """Number of steps that lie in each phase, of those that occur."""
    kinds = Counter(counted(run.phases))
    return {name: kinds[name] for name in ("serial", "pipelined", "forecast") if kinds[name]}


def _seconds(run: RunPlan) -> dict[PhaseName, float]:
    """Seconds of a step by kind; a kind of several phases has that of most of its steps."""
    found: dict[PhaseName, float] = {}
    for phase, _ in reversed(Counter(run.phases).most_common()):
        found[phase.kind] = run.step_seconds[phase]  # pyright: ignore[reportArgumentType]
    return {name: found[name] for name in ("serial", "pipelined", "forecast") if name in found}


def rows(plan: Predicted) -> list[Row]:
    """The modes in the vocabulary of figures; sizes of one device come first."""
    what: dict[str, Any] = {"command": "plan", "device": plan.device, "link": plan.link}
    what |= plan.subject.what()
    one, *ranks = plan.memory
    found = [
        Row(
            mode="one-device",
            ranks=1,
            predicted_seconds=plan.times.both * plan.subject.steps,
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
                predicted_step_ms_by_phase={n: 1e3 * s for n, s in _seconds(run).items()},
                limited_by=run.limited_by,
                peak_device_mb=tuple(held / 1e6 for held in ranks),
                **what,
            )
        )
    return found
