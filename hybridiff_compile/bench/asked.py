"""Refuse what a command was asked for before any work, where it could not be done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from hybridiff_compile.bench import figures, models
from hybridiff_compile.bench.figures import Figures
from hybridiff_compile.errors import ConfigError


def check_names(names: Sequence[str]) -> None:
    """Raise ConfigError for a model that does not exist."""
    unknown = [name for name in names if name not in models.NAMES]
    if unknown:
        raise ConfigError(
            f"unknown model {', '.join(unknown)}; choose from {', '.join(models.NAMES)}."
        )


def check_least(name: str, value: int, least: int) -> None:
    """Raise ConfigError for a count that is too small."""
    if value < least:
        raise ConfigError(f"{name}={value} must be at least {least}.")


def make_folders(out: Path, file: Path | None) -> None:
    """Make an output folder, and the folder of a file that is wanted too.

    Raises:
        ConfigError: one of them cannot be made, or the file cannot be written.
    """
    if file is not None and file.is_dir():
        raise ConfigError(f"cannot write to {file}: it is a folder; name a file in it.")
    try:
        for folder in (out, *([file.parent] if file else [])):
            folder.mkdir(parents=True, exist_ok=True)
        if file is not None:  # a folder may take no files; before the work, not after it
            part = figures.part_of(file)
            part.touch()
            part.unlink()
    except OSError as e:
        raise ConfigError(f"cannot write to {e.filename}: {e.strerror}; choose another.") from e


def read_figures(path: Path) -> Figures:
    """Read a file of figures.

    Raises:
        ConfigError: it cannot be.
    """
    try:
        return figures.read(path)
    except OSError as e:
        raise ConfigError(f"{path} cannot be read: {e.strerror}; name a file of --json.") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path} is no text; name a file that --json wrote.") from e
    except ValidationError as e:
        (why, *_) = e.errors()
        where = ".".join(map(str, why["loc"])) or "its top level"
        raise ConfigError(
            f"{path} is no file of figures: {why['msg']} at {where}; name one that --json wrote."
        ) from e
