"""The points of a sweep: the modes with their switching, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from hybridiff_compile import config
from hybridiff_compile.bench.figures import Mode, Row
from hybridiff_compile.config import TOLERANCES, Config, Controlled, Pinned, SwitchSettings
from hybridiff_compile.errors import ConfigError

#: What a sweep compares unless it is told.
COMPARED: tuple[config.Mode, ...] = ("paper", "guided", "forecast", "hybrid")
MODES: tuple[config.Mode, ...] = ("exact", *COMPARED, "asyncdiff")
#: The settings that each of them takes.
_TAKES: dict[str, tuple[str, ...]] = {
    "exact": (),
    "paper": ("tau1", "k"),
    "guided": ("tau1", "k", "m", "estimator"),
    "forecast": ("tau1", "k", "m", "estimator"),
    "hybrid": ("m", "tolerance", "estimator"),
    "asyncdiff": ("tau1", "k"),
}


@dataclass(frozen=True)
class Point:
    """One mode with its switching; what is None is the mode's own.

    Attributes:
        as_paper: it takes tau1 and k of the paper's row, which must come before it.
    """

    mode: config.Mode
    tau1: int | None = None
    k: int | None = None
    m: int | None = None
    tolerance: float | str | None = None
    estimator: config.Estimator | None = None
    as_paper: bool = False

    @property
    def gpus(self) -> int:
        """The fewest ranks that can run it: extrapolating is the same on one."""
        return 1 if self.mode in ("forecast", "hybrid") else 2

    def settings(self) -> dict[str, Any]:
        """The keywords of `optimize`."""
        names = [field.name for field in fields(self) if field.name != "as_paper"]
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return {"gpus": self.gpus, **given}

    def resolved(self, paper: Row | None) -> Point:
        """This point, with tau1 and k of the paper's row where they are to be the same."""
        if not self.as_paper:
            return self
        assert paper is not None, "the paper's row comes first"
        assert paper.tau1 is not None, "the paper's mode pipelines in every run"
        return replace(self, tau1=paper.tau1, k=paper.k, as_paper=False)

    def used(self, family: SwitchSettings, steps: int) -> dict[str, Any]:
        """Its switching in a run of `steps` steps, as keys of a row.

        Raises:
            ConfigError: a value is out of its range, or the run is too short for it.
        """
        switching = Config(**self.settings()).switching(family, steps)
        if isinstance(switching, Pinned):
            pinned = {"tau1": switching.tau1, "k": switching.k, "m": switching.m}
            return {**pinned, "estimator": switching.estimator}
        if isinstance(switching, Controlled):
            found = {"m": switching.m, "tolerance": switching.tolerance}
            found |= {"estimator": switching.estimator}
            return {"tau1": None, "k": None, **found}  # the pictures' own say nothing of them
        return {}


#: What a plain sweep compares. Guided and forecast take 40 of 50 steps from step 6 on.
STANDARD = (
    Point("paper"),
    Point("guided", as_paper=True),
    Point("guided"),
    Point("forecast", m=2),
    Point("forecast", m=4),
    Point("hybrid"),
)


def points(
    modes: Sequence[str] = (),
    *,
    tau1: Sequence[int] = (),
    k: Sequence[int] = (),
    m: Sequence[int] = (),
    tolerance: Sequence[str] = (),
    estimator: Sequence[str] = (),
) -> tuple[Point, ...]:
    """The points to run: STANDARD, or every combination of what was given.

    Args:
        modes: those of COMPARED if none is given.
        tau1, k, m, tolerance, estimator: each mode takes what it knows of them; tolerances are
            numbers, or names of TOLERANCES.

    Raises:
        ConfigError: an unknown mode or tolerance, or a setting that none of the modes takes.
    """
    tolerances = [_tolerance(t) for t in tolerance]
    given: dict[str, Sequence[Any]] = {"tau1": tau1, "k": k, "m": m}
    given |= {"tolerance": tolerances, "estimator": estimator}
    given = {name: tuple(dict.fromkeys(values)) for name, values in given.items() if values}
    if not modes and not given:
        return STANDARD
    chosen = _modes(modes)
    lost = [name for name in given if not any(name in _TAKES[mode] for mode in chosen)]
    if lost:
        raise ConfigError(
            f"none of the modes {', '.join(chosen)} takes {', '.join(lost)}; drop it or add a mode."
        )
    found: list[Point] = []
    for mode in chosen:
        taken = {name: values for name, values in given.items() if name in _TAKES[mode]}
        found += [
            Point(mode, **dict(zip(taken, values, strict=True)))
            for values in product(*taken.values())
        ]
    return tuple(found)


def _modes(names: Sequence[str]) -> tuple[config.Mode, ...]:
    unknown = [name for name in names if name not in MODES]
    if unknown:
        raise ConfigError(f"unknown mode {', '.join(unknown)}; choose from {', '.join(MODES)}.")
    return tuple(mode for mode in MODES if mode in names) or COMPARED


def _tolerance(text: str) -> float | str:
    if text in TOLERANCES:
        return text
    try:
        return float(text)
    except ValueError:
        raise ConfigError(
            f"tolerance={text!r} is neither a number nor one of {', '.join(TOLERANCES)}."
        ) from None


def label(row: Row) -> str:
    """A row in a few words: `paper k=5`, `forecast k=40 m=2`, `hybrid 0.02`."""
    parts = [row.mode, f"k={row.k}" if row.k else "", f"m={row.m}" if _shows_m(row) else ""]
    if row.mode == "hybrid":
        parts = [f"hybrid {row.tolerance:g}"]
    if row.estimator not in (None, "linear"):  # the default
        parts.append(row.estimator)
    return " ".join(part for part in parts if part)


def _shows_m(row: Row) -> bool:
    default: dict[Mode, int] = {"guided": 1}
    return row.m is not None and row.m != default.get(row.mode)
