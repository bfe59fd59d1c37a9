"""The columns of the compile benchmark's table, and the words for its rows."""

from __future__ import annotations

from collections.abc import Sequence

from hybridiff_compile.bench.figures import Backend, Mode, Row, Scope
from hybridiff_compile.bench.tables import NOT_MEASURED, PHASES, Column, by_phase, by_rank, number

#: A terminal that is narrower had better wrap the lines than cut the figures.
WIDTH = 134
FOOTNOTE = (
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


def label(mode: Mode, backend: Backend | None, scope: Scope | None) -> str:
    """A row's name in a few words: `one device, inductor`, `exact, stage`, `paper, package`."""
    if mode == "one-device":
        return f"one device, {backend}"
    return f"{mode}, {'package' if backend == 'aot' else scope or backend}"


def columns(rows: Sequence[Row]) -> tuple[Column, ...]:
    """The columns, for rows that are compared with torch.compile on one device among them."""
    cold = {
        row.model: row.compile_seconds_cold
        for row in rows
        if (row.mode, row.backend) == ("one-device", "inductor")
    }

    def against_one_device(seconds: float | None, row: Row) -> str:
        return _ratio(seconds, cold.get(row.model))

    return (
        ("row", "", lambda row: label(row.mode, row.backend, row.scope)),
        ("cold", "s", lambda row: number(row.compile_seconds_cold, ".1f")),
        ("cold /", "one dev.", lambda row: against_one_device(row.compile_seconds_cold, row)),
        ("warm", "s", lambda row: number(row.compile_seconds_warm, ".1f")),
        ("warm /", "cold", lambda row: _ratio(row.compile_seconds_warm, row.compile_seconds_cold)),
        ("load", "s", lambda row: number(row.load_seconds, ".2f")),
        ("load /", "one dev.", lambda row: against_one_device(row.load_seconds, row)),
        ("first", "picture s", lambda row: number(row.first_picture_seconds, ".1f")),
        ("step ms", PHASES, lambda row: by_phase(row.step_ms_by_phase, ".1f")),
        ("peak MB", "by rank", lambda row: by_rank(row.peak_rss_mb)),
        ("graphs", "by rank", lambda row: by_rank(row.graphs)),
        ("recompiles", "", lambda row: number(row.recompiles, "d")),
    )


def _ratio(value: float | None, of: float | None) -> str:
    return number(value / of, ".2f") if value is not None and of else NOT_MEASURED
