"""How the rows of `hybridiff bench` are named, and shown as tables and charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from hybridiff_compile.bench import charts, report, tables
from hybridiff_compile.bench.charts import PHASE_COLOURS, Bar, Panel, Side
from hybridiff_compile.bench.figures import Backend, Environment, Mode, Row, Scope
from hybridiff_compile.bench.tables import Layout, by_rank, number, ratio
from hybridiff_compile.ir import Phase

#: Bars of the charts, with their words and colours.
_ONE, _TWO = ("one device", "#8d99ae"), ("two ranks", "#3b6fb6")
READY: Mapping[str, tuple[str, str]] = {
    "compile_seconds_cold": ("compile, empty cache", "#5b4b9a"),
    "compile_seconds_warm": ("compile, warm cache", "#b3a6dd"),
    "load_seconds": ("load a package", "#2a9d74"),
}
STEP: Mapping[str, tuple[str, str]] = {
    "serial": ("serial step", PHASE_COLOURS[Phase.SERIAL]),
    "pipelined": ("pipelined step", PHASE_COLOURS[Phase.PIPELINED]),
}


def label(mode: Mode, backend: Backend | None, scope: Scope | None = None) -> str:
    """A row's name in a few words: `one device, compiled`, `exact, eager`, `paper, package`.

    What is compiled in one piece is named only where it is given: `exact, stage`.
    """
    if mode == "one-device-apart":
        return "one device, apart"
    how = {"eager": "eager", "aot": "package"}.get(backend or "", scope or "compiled")
    return f"{'one device' if mode == 'one-device' else mode}, {how}"


SPEED = Layout(
    columns=(
        ("row", "", lambda row: label(row.mode, row.backend)),
        tables.PICTURE,
        ("p90", "s", lambda row: number(row.seconds_p90, ".2f")),
        tables.SPEEDUP,
        tables.STEP_MS,
        tables.STEPS,
        ("compile", "s", lambda row: number(row.compile_seconds_cold, ".1f")),
        tables.SENT,
        tables.PEAK,
        tables.PSNR,
    ),
    footnote=(
        "Rows take turns, picture by picture, each in processes of its own. Speed-up: against one "
        "device with the same backend. Compile: seconds until it could make its first picture, "
        "with an empty cache; for two ranks that includes capturing the denoiser. Peak: resident "
        "memory of each rank. PSNR: against one device that runs the branches one after the other, "
        "100 at most. asyncdiff: both branches in one batch, pipelined by stages on stale features."
    ),
)
_COMPILED_FOOTNOTE = (
    "Each row is measured in processes of its own, one after the other, with one thread a rank. "
    "Cold, warm: seconds until all ranks are ready, with an empty cache folder and with the one "
    "that the cold process filled. For two ranks that includes capturing the denoiser; for one "
    "device it is the first denoiser call less a later one. Load: the same for an exported "
    "package, its worker's start included, which cold and warm leave out. / one dev.: against the "
    "cold torch.compile of one device. First picture: from a loaded pipeline to the picture, with "
    "an empty cache. Step: the denoiser call, on the driver's clock. Peak: resident memory of the "
    "ranks' processes, compiling included; of a C++ compiler that they start it is not. Graphs: "
    "the compiled ones that each rank has, its own and those that the other compiled for it."
)


def layout(compiles: bool) -> report.LayoutOf:
    """How rows are shown, whether it is compiling that was measured or not."""
    return _compiled if compiles else lambda rows: SPEED


def _compiled(rows: Sequence[Row]) -> Layout:
    """Against torch.compile on one device, which is a row among them."""
    cold = {
        row.model: row.compile_seconds_cold
        for row in rows
        if (row.mode, row.backend) == ("one-device", "inductor")
    }
    columns: tuple[tables.Column, ...] = (
        ("row", "", lambda row: label(row.mode, row.backend, row.scope)),
        ("cold", "s", lambda row: number(row.compile_seconds_cold, ".1f")),
        ("cold /", "one dev.", lambda r: ratio(r.compile_seconds_cold, cold.get(r.model))),
        ("warm", "s", lambda row: number(row.compile_seconds_warm, ".1f")),
        ("warm /", "cold", lambda row: ratio(row.compile_seconds_warm, row.compile_seconds_cold)),
        ("load", "s", lambda row: number(row.load_seconds, ".2f")),
        ("load /", "one dev.", lambda row: ratio(row.load_seconds, cold.get(row.model))),
        ("first", "picture s", lambda row: number(row.first_picture_seconds, ".1f")),
        tables.STEP_MS,
        tables.PEAK,
        ("graphs", "by rank", lambda row: by_rank(row.graphs)),
        ("recompiles", "", lambda row: number(row.recompiles, "d")),
    )
    return Layout(columns, _COMPILED_FOOTNOTE)


def draw(path: Path, rows: Sequence[Row], where: Environment, compiles: bool) -> None:
    """Write one PNG: for each model a panel, for each row of it a line of bars.

    Compiling shows seconds until ready and steady steps, otherwise it is seconds of a picture with
    a line up to their 90th percentile.
    """
    panels = []
    for name, group in groupby(rows, key=lambda row: row.model):
        of = list(group)
        labels = [label(r.mode, r.backend, r.scope if compiles else None) for r in of]
        if compiles:
            ready = [_bars({key: getattr(r, key) for key in READY}, READY) for r in of]
            steps = [_bars(r.step_ms_by_phase or {}, STEP) for r in of]
            left = Side("seconds until all ranks are ready (log axis)", ready, is_log=True)
            sides = [left, Side("a steady step, ms (median)", steps)]
        else:
            colours = [(_ONE if r.ranks == 1 else _TWO)[1] for r in of]
            pairs = zip(of, colours, strict=True)
            bars = [[Bar(r.seconds or 0.0, c, note(r), r.seconds_p90)] for r, c in pairs]
            sides = [Side("seconds of a picture (median; line: 90th percentile)", bars)]
        panels.append(Panel(f"{name}, {of[0].steps} steps", labels, sides))
    kinds = dict((*READY.values(), *STEP.values()) if compiles else (_ONE, _TWO))
    meaning = "" if compiles else "\nx: speed-up over one device with the same backend"
    charts.bars(path, panels, kinds, tables.header(where) + meaning)


def _bars(values: Mapping[Any, float | None], kinds: Mapping[str, tuple[str, str]]) -> list[Bar]:
    """A bar for each of what was measured, in the order of the kinds."""
    found = [(values.get(key), colour) for key, (_, colour) in kinds.items()]
    return [Bar(v, c, f"{v:.1f}" if v >= 1 else f"{v:.2f}") for v, c in found if v]


def note(row: Row) -> str:
    """The words at the end of a bar: seconds, speed-up, dB."""
    words = [f"{row.seconds:.2f} s"]
    words += [] if row.speedup is None else [f"{row.speedup:.2f} x"]
    words += [] if row.psnr_db is None else [f"{row.psnr_db:.0f} dB"]
    return ",  ".join(words)
