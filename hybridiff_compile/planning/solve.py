"""The fastest run within a budget of error: which cut, which phase, how many steps of it.

A mixed-integer linear program over the schedule's graph of dependencies, solved by HiGHS. In that
graph a rank's work at a step waits for its own work at the step before and for what its peer sent.
In a phase that repeats, the time of a step is that of the slowest cycle in the graph, so the time
spent in a phase is bounded from below by one line for each cycle:

    serial     T(B) + E                       rank 1's branch, its prediction, the next step
    pipelined  A_c + X_c                      stage0, the cut, the next step
               B_c + E                        stage1, the prediction, the next step
    forecast   T(B) + E                       of each computed step; every m-th of them is one

Variables: `cut_c` in {0, 1}, one of them 1; `use_k` in {0, 1}, at most one kind of phase beside
serial; `steps_s`, `steps_k,c` and, of those, `computed_k,c` whole numbers; `time_s`, `time_k,c`
seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from hybridiff_compile.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of phase that may take the place of serial steps.

    Attributes:
        name: "paper", "guided" or "forecast".
        m: of m steps one is computed; 1 where the ranks work at each.
        error: mean squared error of the picture that each of its steps adds.
        most: steps of it that a run may have at most.
    """

    name: str
    m: int
    error: float
    most: int


@dataclass(frozen=True, slots=True)
class Cut:
    """Seconds of the cycles of a pipelined step, by where the denoiser is cut."""

    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Best:
    """What the solver found.

    Attributes:
        seconds: of the whole run.
        kind: the phase beside serial; None if all steps are serial.
        steps: of that kind.
        cut: index of the cut.
    """

    seconds: float
    kind: Kind | None
    steps: int
    cut: int


def solve(
    steps: int, serial: float, cuts: Sequence[Cut], kinds: Sequence[Kind], budget: float
) -> Best:
    """Find the fastest run.

    Args:
        steps: of the run.
        serial: seconds of a serial step.
        cuts: candidates, one at least.
        kinds: of phases.
        budget: largest mean squared error of the picture.

    Raises:
        ConfigError: HiGHS found none.
    """
    pairs = [(k, c) for k in range(len(kinds)) for c in range(len(cuts))]
    names = ["steps_s", "time_s", *(f"cut_{c}" for c in range(len(cuts)))]
    names += [f"use_{k}" for k in range(len(kinds))]
    names += [f"{what}_{k}_{c}" for what in ("steps", "computed", "time") for k, c in pairs]
    at = {name: i for i, name in enumerate(names)}
    rows: list[np.ndarray] = []
    low: list[float] = []
    high: list[float] = []

    def require(terms: dict[str, float], least: float = -np.inf, most: float = np.inf) -> None:
        row = np.zeros(len(names))
        for name, factor in terms.items():
            row[at[name]] = factor
        rows.append(row)
        low.append(least)
        high.append(most)

    count = {f"steps_{k}_{c}": 1.0 for k, c in pairs}
    require({"steps_s": 1, **count}, steps, steps)
    require({f"cut_{c}": 1 for c in range(len(cuts))}, 1, 1)
    require({f"use_{k}": 1 for k in range(len(kinds))} or {"steps_s": 0}, most=1)
    # In shares of the largest: HiGHS takes factors of 1e-9 for nothing, and errors are that small.
    largest = max((kind.error for kind in kinds), default=0.0) or 1.0
    errors = {f"steps_{k}_{c}": kinds[k].error / largest for k, c in pairs}
    require(errors or {"steps_s": 0}, most=budget / largest)
    require({"time_s": 1, "steps_s": -serial}, 0)
    for k, c in pairs:
        own, computed, time = (f"{what}_{k}_{c}" for what in ("steps", "computed", "time"))
        require({own: 1, f"use_{k}": -kinds[k].most}, most=0)
        require({own: 1, f"cut_{c}": -steps}, most=0)
        # The last computed step may have up to m - 1 extrapolated ones behind it.
        require({computed: kinds[k].m, own: -1}, 1 - kinds[k].m)
        for cycle in _cycles(kinds[k], cuts[c], serial):
            require({time: 1, computed: -cycle}, 0)
    whole = np.array([not name.startswith("time") for name in names], dtype=int)
    upper = np.array([1 if n.startswith(("cut", "use")) else np.inf for n in names])
    found = milp(
        c=np.array([1.0 if name.startswith("time") else 0.0 for name in names]),
        constraints=LinearConstraint(np.array(rows), np.array(low), np.array(high)),  # pyright: ignore
        integrality=whole,
        bounds=Bounds(np.zeros(len(names)), upper),  # pyright: ignore
    )
    if found.x is None:
        raise ConfigError(f"no run of {steps} steps was found: {found.message}")
    chosen = {name: float(found.x[i]) for name, i in at.items()}
    cut = max(range(len(cuts)), key=lambda c: chosen[f"cut_{c}"])
    used = [(k, round(chosen[f"steps_{k}_{c}"])) for k, c in pairs if c == cut]
    k, length = max(used, key=lambda pair: pair[1], default=(0, 0))
    return Best(float(found.fun), kinds[k] if length else None, length, cut)


def _cycles(kind: Kind, cut: Cut, serial: float) -> list[float]:
    """Seconds a computed step of every cycle of a phase."""
    if kind.name == "forecast":
        return [serial]
    return [cut.first, cut.last]
