"""A profile as tables, sentences and figures: what the ceiling is, and what holds it back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table

from hybridiff_compile.bench import tables
from hybridiff_compile.bench.figures import Row
from hybridiff_compile.ir import Phase
from hybridiff_compile.planning import devices, report, runs
from hybridiff_compile.planning.profile import Profile
from hybridiff_compile.runtime.switching import counted

_STEPS = {
    Phase.SERIAL: "serial",
    Phase.PIPELINED: "pipelined (paper)",
    Phase.DRAINED: "its last",
}
_BLAME = {
    "batching": "what one device gains by batching both branches",
    "balance": "stages of unequal length, and the last pipelined step",
    "link": "the link",
    "own": "the driver's own work",
    "rest": "encoders, scheduler and VAE",
}


def show(profile: Profile, console: Console, thinned: str = "") -> None:
    """Print all of it, and what was left out to be quick."""
    shown = [phases(profile), losses_table(profile)]
    shown[0].caption = thinned or None
    report.print_all(title(profile), shown, sentences(profile), console)


def title(profile: Profile) -> str:
    """What was measured, in a line."""
    subject = profile.plan.subject
    return f"{subject.name}, {subject.width} x {subject.height}, {subject.steps} steps"


def phases(profile: Profile) -> Table:
    """A step in each phase: the parts alone, the prediction, and what two ranks took."""
    head = ("", "rank 0 alone", "rank 1 alone", "link", "predicted", "measured", "off")
    table = tables.empty("a step of the paper's mode, ms", *head)
    t = profile.times
    alone: Mapping[Phase, tuple[float | None, float, float]] = {
        Phase.SERIAL: (*t.branch, t.prediction),
        Phase.PIPELINED: (*t.stages, t.cut),
        Phase.DRAINED: (None, t.stages[1], t.prediction),
    }
    for phase, predicted in profile.predicted.items():
        measured = profile.measured.get(phase)
        off = None if measured is None else predicted / measured - 1
        seconds = (*alone[phase], predicted, measured)
        cells = [*(tables.number(s, ".2f", 1e3) for s in seconds), tables.number(off, "+.0%")]
        table.add_row(_STEPS[phase], *cells)
    return table


def losses_table(profile: Profile) -> Table:
    """Where the time of a picture in the paper's mode goes, beside an even share of the work."""
    table = tables.empty("a picture on two ranks, s", "", "s", "share")
    found = losses(profile)
    total = sum(found.values())
    for name, seconds in found.items():
        label = _BLAME.get(name, "what the steps compute, evenly shared")
        table.add_row(label, f"{seconds:.3f}", f"{seconds / total:.1%}")
    table.add_row("the picture", f"{total:.3f}", "")
    return table


def losses(profile: Profile) -> dict[str, float]:
    """Seconds of a predicted picture in the paper's mode, by what they go to.

    "half" is what the denoiser would take if its work, pipelined steps left as they are, were
    shared evenly at no cost; the others come on top of it.
    """
    t, counts = profile.times, Counter(profile.phases)
    no_link = replace(t, cut=0.0, prediction=0.0, own=0.0)
    share = {Phase.SERIAL: 0.5, Phase.PIPELINED: 0.25, Phase.DRAINED: 0.25}
    even = {Phase.SERIAL: max(t.branch), Phase.PIPELINED: sum(t.stages) / 2}
    even[Phase.DRAINED] = even[Phase.PIPELINED]
    found: dict[str, float] = dict.fromkeys(
        ("half", "batching", "balance", "link", "own", "rest"), 0.0
    )
    for phase, n in counts.items():
        best = t.both * share[phase]
        slower = runs.step_seconds("paper", phase, no_link)
        found["half"] += n * best
        found["batching"] += n * (even[phase] - best)
        found["balance"] += n * (slower - even[phase])
        found["link"] += n * (profile.predicted[phase] - slower - t.own)
        found["own"] += n * t.own
    found["rest"] = max(0.0, profile.picture.seconds - profile.picture.denoiser)
    return found


def sentences(profile: Profile) -> Iterator[str]:
    """What the ceiling is, and what holds it back."""
    t, whole, n = profile.times, profile.picture, len(profile.phases)
    share = whole.denoiser / whole.seconds
    rest = whole.seconds - whole.denoiser
    yield (
        f"One device makes a picture of {n} steps in {whole.seconds:.2f} s; its denoiser takes "
        f"{share:.1%} of that. Half of it on each of two devices makes {_ceiling(profile):.2f} "
        "times, which nothing that computes both branches in every step can pass."
    )
    exact = whole.seconds / (rest + n * runs.step_seconds("exact", Phase.SERIAL, t))
    yield (
        f"T(2B)/T(B) is {t.both / max(t.branch):.2f}: that is what two ranks can gain in a step "
        f"with a branch each. Predicted for the picture: exact {exact:.2f}, the paper's mode with "
        f"{_pipelined(profile)} of {n} steps pipelined {_predicted(profile):.2f}."
    )
    slower, half = max(t.stages), max(t.branch) / 2
    yield (
        f"The stages take {1e3 * t.stages[0]:.1f} and {1e3 * t.stages[1]:.1f} ms alone; the slower "
        f"one takes {slower / half:.2f} times half of a branch."
    )
    yield (
        f"The link ({_how(profile.link)}) moves {profile.link.rate / 1e6:.0f} MB/s after "
        f"{1e6 * profile.link.latency:.0f} us: the cut takes {1e3 * t.cut:.2f} ms, "
        f"{t.cut / (t.cut + t.stages[0]):.1%} of stage0's way."
    )
    found = losses(profile)
    most = max(_BLAME, key=found.__getitem__)
    yield (
        f"What holds it back most is {_BLAME[most]}: {found[most] / sum(found.values()):.1%} of "
        "the picture."
    )
    if profile.computing is not None:
        at_once = max(a / b for a, b in zip(profile.computing, t.branch, strict=True))
        yield (
            f"At work at the same time, a rank computes for {at_once - 1:+.0%} of what it takes "
            "alone: that is what ranks of one machine cost each other, and is in no prediction."
        )
    else:
        yield "Nothing was run on two ranks: the link is a stated one."


def rows(profile: Profile) -> list[Row]:
    """One device, exact and the paper's mode in the vocabulary of figures."""
    subject, t, whole = profile.plan.subject, profile.times, profile.picture
    rest, n = whole.seconds - whole.denoiser, len(profile.phases)
    what: dict[str, Any] = {"command": "profile", "backend": "eager", **subject.what()}
    what |= {"device": devices.HERE, "link": profile.link.name}
    one = Row(
        mode="one-device",
        ranks=1,
        seconds=whole.seconds,
        denoiser_share=whole.denoiser / whole.seconds,
        step_ms_by_phase={"serial": 1e3 * t.both},
        **what,
    )
    found = [one]
    for mode, phases in (("exact", (Phase.SERIAL,) * n), ("paper", profile.phases)):
        counts = Counter(counted(phases))
        seconds = rest + sum(runs.step_seconds("paper", phase, t) for phase in phases)
        names = [name for name in ("serial", "pipelined") if counts[name]]
        of = {name: Phase.SERIAL if name == "serial" else Phase.PIPELINED for name in names}
        measured = {n: 1e3 * profile.measured[of[n]] for n in names if of[n] in profile.measured}
        found.append(
            Row(
                mode=mode,  # pyright: ignore[reportArgumentType]
                ranks=2,
                steps_by_phase={n: counts[n] for n in ("serial", "pipelined", "forecast")},
                step_ms_by_phase=measured or None,  # pyright: ignore[reportArgumentType]
                predicted_step_ms_by_phase={n: 1e3 * profile.predicted[of[n]] for n in names},  # pyright: ignore
                predicted_seconds=seconds,
                predicted_speedup=whole.seconds / seconds,
                branch_ms=tuple(1e3 * s for s in t.branch),
                stage_ms=tuple(1e3 * s for s in t.stages),
                link_mb_per_s=profile.link.rate / 1e6,
                link_latency_us=1e6 * profile.link.latency,
                **what,
            )
        )
    return found


def _ceiling(profile: Profile) -> float:
    whole = profile.picture
    return whole.seconds / (whole.seconds - whole.denoiser / 2)


def _predicted(profile: Profile) -> float:
    return profile.picture.seconds / sum(losses(profile).values())


def _pipelined(profile: Profile) -> int:
    return sum(phase is not Phase.SERIAL for phase in profile.phases)


def _how(link: devices.Link) -> str:
    return "measured" if link.name == devices.HERE else f"{link.name}, stated"
