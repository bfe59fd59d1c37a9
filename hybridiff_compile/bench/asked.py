"""Refuse what a command was asked for before any work, where it could not be done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hybridiff_compile.bench import models
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
        ConfigError: one of them cannot be made.
    """
    if file is not None and file.is_dir():
        raise ConfigError(f"cannot write to {file}: it is a folder; name a file in it.")
    try:
        for folder in (out, *([file.parent] if file else [])):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"cannot write to {e.filename}: {e.strerror}; choose another.") from e
