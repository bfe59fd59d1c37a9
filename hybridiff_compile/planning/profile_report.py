"""A profile as tables, sentences and figures: what the ceiling is, and what holds it back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table

from hybridiff_compile.bench import tables
from hybridiff_compile.bench.figures import Row
from hybridiff_compile.ir import Phase
from hybridiff_compile.planning import devices, report, runs
from hybridiff_compile.planning.profile import Profile

#: What a picture's time goes to beside its steps' own work, which is the first.
WORK = "what the steps compute, evenly shared"
BATCHING = "what one device gains by batching both branches"
BALANCE = "stages of unequal length, and the last pipelined step"
LINK, OWN, REST = "the link", "the driver's own work", "encoders, scheduler and VAE"


def show(profile: Profile, console: Console, thinned: str = "") -> None:
    """Print all of it, and what was left out to be quick."""
    subject, link = profile.subject, profile.link
    how = "measured" if link.name == devices.HERE else f"{link.name}, stated"
    head = (
        f"{subject.name}, {subject.width} x {subject.height}, {subject.steps} steps; link "
        f"({how}): {link.rate / 1e6:.0f} MB/s after {1e6 * link.latency:.0f} us"
    )
    shown = [_phases(profile), _losses(profile)]
    shown[0].caption = thinned or None
    report.print_all(head, shown, sentences(profile), console)


def _phases(profile: Profile) -> Table:
    """A step in each phase: the parts alone, the prediction, and what two ranks took."""
    head = ("", "rank 0 alone", "rank 1 alone", "link", "predicted", "measured", "off")
    table, t = tables.empty("a step of the paper's mode, ms", *head), profile.times
    alone = {
        Phase.SERIAL: ("serial", *t.branch, t.prediction),
        Phase.PIPELINED: ("pipelined", *t.stages, t.cut),
        Phase.DRAINED: ("the last pipelined", None, t.stages[1], t.prediction),
    }
    for phase in dict.fromkeys(profile.phases):
        predicted = runs.step_seconds("paper", phase, t)
        measured = profile.measured.get(phase)
        off = None if measured is None else predicted / measured - 1
        name, *parts = alone[phase]
        cells = (tables.number(s, ".2f", 1e3) for s in (*parts, predicted, measured))
        table.add_row(name, *cells, tables.number(off, "+.0%"))
    return table


def _losses(profile: Profile) -> Table:
    """Where the time of a picture in the paper's mode goes, beside an even share of the work."""
    table = tables.empty("a picture on two ranks, s", "", "s", "share")
    found = losses(profile)
    total = sum(found.values())
    for name, seconds in (*found.items(), ("the picture", total)):
        table.add_row(name, f"{seconds:.3f}", f"{seconds / total:.1%}")
    return table


def losses(profile: Profile) -> dict[str, float]:
    """Seconds of a predicted picture in the paper's mode, by what they go to.

    WORK is what the denoiser would take if its work, pipelined steps left as they are, were shared
    evenly at no cost; the others come on top of it.
    """
    t, counts = profile.times, Counter(profile.phases)
    no_link = replace(t, cut=0.0, prediction=0.0, own=0.0)
    found = dict.fromkeys((WORK, BATCHING, BALANCE, LINK, OWN), 0.0)
    for phase, n in counts.items():
        is_serial = phase is Phase.SERIAL
        work = t.both * (0.5 if is_serial else 0.25)
        even = max(t.branch) if is_serial else sum(t.stages) / 2
        slower = runs.step_seconds("paper", phase, no_link)
        found[WORK] += n * work
        found[BATCHING] += n * (even - work)
        found[BALANCE] += n * (slower - even)
        found[LINK] += n * (runs.step_seconds("paper", phase, t) - slower - t.own)
        found[OWN] += n * t.own
    return found | {REST: max(0.0, profile.seconds - profile.denoiser_seconds)}


def sentences(profile: Profile) -> Iterator[str]:
    """What the ceiling is, and what holds it back."""
    t, n, seconds = profile.times, len(profile.phases), profile.seconds
    pipelined = n - profile.phases.count(Phase.SERIAL)
    _, exact, paper = rows(profile)
    yield (
        f"One device makes a picture of {n} steps in {seconds:.2f} s; its denoiser takes "
        f"{profile.denoiser_seconds / seconds:.1%} of that. Half of it on each of two devices "
        f"makes {seconds / (seconds - profile.denoiser_seconds / 2):.2f} times, which nothing that "
        "computes both branches in every step can pass."
    )
    yield (
        f"T(2B)/T(B) is {t.both / max(t.branch):.2f}: that is what two ranks can gain in a step "
        f"with a branch each. Predicted for the picture: exact {exact.predicted_speedup:.2f}, the "
        f"paper's mode with {pipelined} of {n} steps pipelined {paper.predicted_speedup:.2f}."
    )
    found = losses(profile)
    _, *others = found
    most = max(others, key=found.__getitem__)
    share = found[most] / sum(found.values())
    yield f"What holds it back most is {most}: {share:.1%} of the picture."
    if not profile.measured:
        yield "Nothing was run on two ranks: the link is a stated one."


def rows(profile: Profile) -> list[Row]:
    """One device, exact and the paper's mode in the vocabulary of figures."""
    subject, t, link = profile.subject, profile.times, profile.link
    what: dict[str, Any] = {"command": "profile", "backend": "eager", **subject.what()}
    what |= {"device": devices.HERE, "link": link.name}
    one = Row(
        mode="one-device",
        ranks=1,
        seconds=profile.seconds,
        denoiser_share=profile.denoiser_seconds / profile.seconds,
        step_ms_by_phase={"serial": 1e3 * t.both},
        **what,
    )
    what |= {
        "branch_ms": tuple(1e3 * s for s in t.branch),
        "stage_ms": tuple(1e3 * s for s in t.stages),
        "link_mb_per_s": link.rate / 1e6,
        "link_latency_us": 1e6 * link.latency,
    }
    found, rest = [one], profile.seconds - profile.denoiser_seconds
    modes: Any = {"exact": [Phase.SERIAL] * len(profile.phases), "paper": profile.phases}
    for mode, phases in modes.items():
        kinds = [phase for phase in (Phase.SERIAL, Phase.PIPELINED) if phase in phases]
        took = profile.measured
        measured = {phase.kind: 1e3 * took[phase] for phase in kinds if phase in took} or None
        own = what | {"step_ms_by_phase": measured}
        found.append(runs.row(mode, phases, t, profile.seconds, rest, **own))
    return found
