"""The columns of the sweep's table, and what is said below it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console

from hybridiff_compile.bench import tables
from hybridiff_compile.bench.figures import Environment, Row
from hybridiff_compile.bench.tables import Column, by_phase, number

#: A terminal that is narrower had better wrap the lines than cut the figures.
WIDTH = 142
FOOTNOTE = (
    "Steps: those that lie in each phase, of the picture with the median cost. Cost: forwards of "
    "one branch that each of two ranks runs for a picture (a serial step 1, a pipelined one 1/2, "
    "an extrapolated one 0; of asyncdiff, which runs both branches in one batch, twice that), mean "
    "over pictures; speed-up by cost: against exact, which runs one at every step, if messages "
    "cost nothing. Picture: measured seconds, by as many processes "
    "as `ranks` says; extrapolating on one gives what it gives on two, but for rounding. PSNR "
    "and error are against one-device-apart, same prompts and seeds."
)


def by_cost(row: Row) -> float | None:
    """Speed-up over exact on two ranks that messages cost nothing; None without a cost."""
    if not row.forwards_per_rank or row.steps is None:
        return None
    return row.steps / row.forwards_per_rank


COLUMNS: tuple[Column, ...] = (
    ("mode", "", lambda row: row.mode),
    ("scheduler", "", lambda row: (row.scheduler or "-").removesuffix("Scheduler")),
    ("steps", "", lambda row: number(row.steps, "d")),
    ("tau1", "", lambda row: number(row.tau1, "d")),
    ("k", "", lambda row: number(row.k, "d")),
    ("m", "", lambda row: number(row.m, "d")),
    ("toler-", "ance", lambda row: number(row.tolerance, "g")),
    ("estimator", "", lambda row: row.estimator or tables.NOT_MEASURED),
    ("serial / pip.", "/ forecast", lambda row: by_phase(row.steps_by_phase, "d")),
    ("cost", "forwards", lambda row: number(row.forwards_per_rank, ".1f")),
    ("speed-up", "by cost", lambda row: number(by_cost(row), ".2f")),
    ("picture", "s", lambda row: number(row.seconds, ".2f")),
    ("ranks", "", lambda row: number(row.ranks, "d")),
    ("PSNR", "dB", lambda row: number(row.psnr_db, ".1f")),
    ("max error", "", tables.error),
    ("right", "", tables.right),
)
#: A terminal's tables say the rest in their titles.
_IN_TITLE = ("scheduler", "steps")


def setting(row: Row) -> tuple[str, str | None, int | None]:
    """What the rows of one table, and of one panel of the plot, have in common."""
    return row.model, row.scheduler, row.steps


def show(rows: Sequence[Row], where: Environment, console: Console) -> None:
    """Print a table for each setting, and what the columns mean."""
    columns = [c for c in COLUMNS if c[0] not in _IN_TITLE]
    width = console.width
    console.width = max(width, WIDTH)
    for _, group in groupby(rows, key=setting):
        for table in tables.terminal_tables(list(group), columns):
            console.print()
            console.print(table)
    console.width = width
    console.print(
        f"\n{FOOTNOTE} {where.threads_per_rank} thread a rank on {where.cpu}, {where.cpu_count} "
        f"cores; torch {where.torch}, diffusers {where.diffusers}.",
        style="dim",
        highlight=False,
    )
