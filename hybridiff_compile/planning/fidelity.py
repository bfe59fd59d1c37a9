"""What each step of a phase does to a picture: read off figures that `hybridiff sweep` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hybridiff_compile.bench import figures
from hybridiff_compile.bench.figures import Row
from hybridiff_compile.errors import ConfigError
from hybridiff_compile.planning.solve import Kind

_ASSETS = Path(__file__).resolve().parent.parent / "assets"
#: `hybridiff sweep` on the embedded pipelines, 50 steps of 64 prompts and 28 and 20 of 32 ones: no
#: other model can be measured here.
MEASURED = (_ASSETS / "sweep.json", _ASSETS / "sweep-fewer-steps.json")


@dataclass(frozen=True, slots=True)
class Errors:
    """What phases were measured to do to pictures.

    Attributes:
        model: whose pictures.
        steps: of the runs; None if none were of as few steps as are planned for.
        kinds: the phases that may take the place of serial steps, with the error that a step of
            each adds; none without such runs.
    """

    model: str
    steps: int | None
    kinds: tuple[Kind, ...]


def errors(
    model: str, steps: int, most: Mapping[str, int], files: Sequence[Path] = MEASURED
) -> Errors:
    """Read what phases do in runs of as many steps, or of the next fewer that were measured.

    The error of an extrapolated step grows with the second power of its distance, its square with
    the fourth, so runs of more steps say nothing of it. Errors are taken to add up: of the runs of
    a kind, the one with the most error a step counts.

    Args:
        model: whose rows to read.
        steps: of the run that is planned for.
        most: steps of each mode that a run may have.
        files: of figures.

    Raises:
        ConfigError: a file cannot be read, or none says anything of the model.
    """
    rows = [
        row
        for file in files
        for row in figures.read(file).rows
        if row.model == model and _tells(row, most)
    ]
    if not rows:
        raise ConfigError(
            f"{', '.join(map(str, files))}: no row of {model} in a mode that switches; run "
            "hybridiff sweep --json."
        )
    near = max((n for row in rows if (n := row.steps or 0) <= steps), default=None)
    found: dict[tuple[str, int], float] = {}
    for row in (row for row in rows if row.steps == near):
        assert row.psnr_db is not None
        key = row.mode, row.m if row.mode == "forecast" and row.m else 1
        found[key] = max(found.get(key, 0.0), error_of(row.psnr_db) / _switched(row))
    kinds = (Kind(mode, m, error, most[mode]) for (mode, m), error in sorted(found.items()))
    return Errors(model, near, tuple(kinds))


def _tells(row: Row, most: Mapping[str, int]) -> bool:
    """Whether it measured a kind of phase that a run may have; guided with an m is none."""
    measured = None not in (row.steps, row.psnr_db) and _switched(row) > 0
    return measured and row.mode in most and (row.mode == "forecast" or row.m in (None, 1))


def _switched(row: Row) -> int:
    """Steps that were not serial."""
    steps = row.steps_by_phase or {}
    return sum(steps.values()) - steps.get("serial", 0)


def error_of(psnr_db: float) -> float:
    """The mean squared error of pictures in [0, 1] with that PSNR."""
    return 10 ** (-psnr_db / 10)
