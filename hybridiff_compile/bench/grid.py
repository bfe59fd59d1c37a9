"""The points of a sweep: the modes with their switching, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from hybridiff_compile import config
from hybridiff_compile.bench.figures import Row
from hybridiff_compile.bench.models import check_names
from hybridiff_compile.config import TOLERANCES, Config, Controlled, Pinned, SwitchSettings
from hybridiff_compile.errors import ConfigError

#: What a sweep compares unless it is told.
COMPARED: tuple[config.Mode, ...] = ("paper", "guided", "forecast", "hybrid")
MODES: tuple[config.Mode, ...] = ("exact", *COMPARED, "asyncdiff")
_SWITCHING = ("tau1", "k", "m", "tolerance", "estimator")
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
        given = {name: value for name, value in asdict(self).items() if value is not None}
        del given["as_paper"]
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
        if not isinstance(switching, Pinned | Controlled):
            return {}
        # None of what a mode does not know: its pictures say nothing of that.
        return {name: getattr(switching, name, None) for name in _SWITCHING}


#: What a plain sweep compares. Guided and forecast take 40 of 50 steps from step 6 on.
STANDARD = (
    Point("paper"),
    Point("guided", as_paper=True),
    Point("guided"),
    Point("forecast", m=2),
    Point("forecast", m=4),
    Point("hybrid"),
)


def points(modes: Sequence[str] = (), **given: Sequence[Any]) -> tuple[Point, ...]:
    """The points to run: STANDARD, or every combination of what was given.

    Args:
        modes: those of COMPARED if none is given.
        given: values of tau1, k, m, tolerance, estimator; each mode takes what it knows of them.
            A tolerance is a number, or a name of TOLERANCES, in words.

    Raises:
        ConfigError: an unknown mode or tolerance, or a setting that none of the modes takes.
    """
    given = {name: tuple(dict.fromkeys(given[name])) for name in _SWITCHING if given.get(name)}
    if "tolerance" in given:
        given["tolerance"] = [_tolerance(text) for text in given["tolerance"]]
    if not modes and not given:
        return STANDARD
    check_names(modes, MODES, "mode")
    chosen: Sequence[config.Mode] = [mode for mode in MODES if mode in modes] or COMPARED
    lost = [name for name in given if not any(name in _TAKES[mode] for mode in chosen)]
    if lost:
        raise ConfigError(
            f"none of the modes {', '.join(chosen)} takes {', '.join(lost)}; drop it or add a mode."
        )
    found: list[Point] = []
    for mode in chosen:
        taken = [name for name in given if name in _TAKES[mode]]
        every = product(*(given[name] for name in taken))
        found += [Point(mode, **dict(zip(taken, values, strict=True))) for values in every]
    return tuple(found)


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
    shows_m = row.m is not None and (row.mode, row.m) != ("guided", 1)  # which is its default
    parts = [row.mode, f"k={row.k}" if row.k else "", f"m={row.m}" if shows_m else ""]
    if row.mode == "hybrid":
        parts = [f"hybrid {row.tolerance:g}"]
    if row.estimator not in (None, "linear"):  # the default
        parts.append(row.estimator)
    return " ".join(part for part in parts if part)
