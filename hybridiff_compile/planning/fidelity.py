"""What each step of a phase does to a picture: read off figures that `hybridiff sweep` measured."""

from __future__ import annotations

from pathlib import Path

from hybridiff_compile.bench import figures
from hybridiff_compile.bench.figures import Row
from hybridiff_compile.errors import ConfigError
from hybridiff_compile.planning.solve import Kind

#: `hybridiff sweep` on the embedded pipelines, 64 prompts: no other model can be measured here.
MEASURED = Path(__file__).resolve().parent.parent / "assets" / "sweep.json"


def kinds(model: str, most: dict[str, int], file: Path = MEASURED) -> list[Kind]:
    """The phases that may take the place of serial steps, with the error that a step of each adds.

    Errors are taken to add up: of the runs of a kind, the one with the most error a step counts.

    Args:
        model: whose rows to read.
        most: steps of each mode that a run may have.
        file: of figures.

    Raises:
        ConfigError: the file cannot be read, or says nothing of the model.
    """
    found: dict[tuple[str, int], float] = {}
    for row in read(file):
        if row.model != model or row.mode not in most or row.psnr_db is None:
            continue
        count = sum((row.steps_by_phase or {}).values()) - (row.steps_by_phase or {}).get(
            "serial", 0
        )
        if count == 0:
            continue
        key = row.mode, row.m if row.mode == "forecast" and row.m else 1
        found[key] = max(found.get(key, 0.0), error_of(row.psnr_db) / count)
    if not found:
        raise ConfigError(
            f"{file} has no row of {model} in a mode that switches; run hybridiff sweep --json."
        )
    return [Kind(mode, m, error, most[mode]) for (mode, m), error in sorted(found.items())]


def read(file: Path) -> tuple[Row, ...]:
    """The rows of a file of figures.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return figures.read(file).rows
    except (OSError, ValueError) as e:  # a pydantic ValidationError is one
        why = str(e).partition("\n")[0]
        raise ConfigError(f"{file} holds no figures: {why}; name what sweep --json wrote.") from e


def error_of(psnr_db: float) -> float:
    """The mean squared error of pictures in [0, 1] with that PSNR."""
    return 10 ** (-psnr_db / 10)
