"""Frozen settings: what `optimize` was asked for, and what a run of T steps makes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from hybridiff_compile.arguments import check_choice, check_positive
from hybridiff_compile.errors import ConfigError

Mode = Literal["exact", "paper", "hybrid", "guided", "forecast", "asyncdiff"]
Estimator = Literal["hold", "linear", "sigma", "logsnr", "quadratic"]
Backend = Literal["eager", "inductor", "tensorrt", "aot"]
Scope = Literal["stage", "regional", "whole"]
CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]

#: The number of steps that the paper's constants are given for (App. G).
PAPER_STEPS = 50


@dataclass(frozen=True, slots=True)
class SwitchSettings:
    """When the paper's mode pipelines (Sec. 4.3); steps are counted from 0.

    Attributes:
        L_slope: lag L of the slope G_i, in steps.
        eps_slope: threshold g of the slope, discrepancy per step.
        k: number of pipelined steps, tau2 = tau1 + k (Eq. 3).
        tau_cap: latest first pipelined step.
        tau1: first pipelined step when forced; None lets the discrepancy decide.
        drains: whether the last pipelined step is DRAINED, which not every mode has a program for.
    """

    L_slope: int
    eps_slope: float
    k: int
    tau_cap: int
    tau1: int | None = None
    drains: bool = True

    def scaled(self, steps: int) -> SwitchSettings:
        """Return the same schedule for a run of `steps` steps instead of 50."""

        def scale(count: int) -> int:
            return max(1, round(count * steps / PAPER_STEPS))

        return SwitchSettings(
            L_slope=scale(self.L_slope),
            eps_slope=self.eps_slope * PAPER_STEPS / steps,
            k=scale(self.k),
            tau_cap=scale(self.tau_cap),
        )


#: App. G, by the kind of denoiser that the constants were tuned on.
UNET_SWITCHING = SwitchSettings(L_slope=12, eps_slope=0.4e-3, k=5, tau_cap=15)
TRANSFORMER_SWITCHING = SwitchSettings(L_slope=15, eps_slope=0.1e-3, k=5, tau_cap=40)


@dataclass(frozen=True, slots=True)
class Pinned:
    """Guided pipelining or forecasting pinned to some steps.

    Attributes:
        mode: "guided" or "forecast".
        tau1, k: first of the steps, and how many they are.
        m: in a group of m steps one is computed (or moves the pipeline), the others extrapolated.
        estimator: how.
    """

    mode: Literal["guided", "forecast"]
    tau1: int
    k: int
    m: int
    estimator: Estimator


@dataclass(frozen=True, slots=True)
class Controlled:
    """Forecasting where its error is seen to be small.

    Attributes:
        tolerance: largest weighted error of an extrapolated step.
        m: a step is computed at least every m steps.
        warm, tail: first and last steps, which are always computed.
        steps: of the run.
        estimator: how steps are extrapolated.
    """

    tolerance: float
    m: int
    warm: int
    tail: int
    steps: int
    estimator: Estimator


#: How a run chooses each step's phase; None is always serial.
Switching = SwitchSettings | Pinned | Controlled | None

# The m of hybrid, unless it is given or comes with a named tolerance.
_M = 4
#: Named tolerances, and the m that goes with each; docs/modes.md says what they give, in dB.
TOLERANCES = {"fine": (0.15, _M), "balanced": (0.4, _M), "fast": (0.8, 6)}

# An extrapolated step as large as this times the prediction has nothing of it left.
_MOST_TOLERANCE = 10.0


def _ends(steps: int) -> tuple[int, int]:
    """How many first and last steps are computed in a run of `steps` steps: 6 and 4 from 24 on."""
    return min(6, max(3, steps // 4)), min(4, max(2, steps // 5))


@dataclass(frozen=True, slots=True)
class Lowering:
    """How a rank's programs are made to run.

    Attributes:
        backend: "eager": the captured graph's own kernels; "inductor": compiled by torch.compile's
            compiler; "tensorrt": by torch-tensorrt; "aot": compiled before, and read
            from a package (by `load` only).
        scope: what is compiled in one piece. "stage": each stage of the denoiser once, the phases
            composed of them; "regional": each distinct repeated block once, the rest is eager;
            "whole": each phase's step with its links inside.
        compile_mode: Inductor's, as in `torch.compile(mode=...)`; None is its default.
    """

    backend: Backend = "eager"
    scope: Scope = "stage"
    compile_mode: CompileMode | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for an unknown name, or one that another backend understands."""
        if self.backend != "aot":  # load()'s own, no choice of optimize()
            check_choice("backend", self.backend, [b for b in get_args(Backend) if b != "aot"])
        check_choice("scope", self.scope, get_args(Scope))
        if self.compile_mode is not None:
            check_choice("compile_mode", self.compile_mode, get_args(CompileMode))
            if self.backend != "inductor":
                raise ConfigError(
                    f"compile_mode={self.compile_mode!r} is Inductor's; pass backend='inductor'."
                )
        if self.scope != "stage" and self.backend != "inductor":
            raise ConfigError(
                f"scope={self.scope!r} needs backend='inductor'; {self.backend!r} runs stages."
            )


#: The modes that each switching setting is for.
_MODES_OF = {
    "L_slope": ("paper",),
    "eps_slope": ("paper",),
    "tau_cap": ("paper",),
    "tau1": ("paper", "guided", "forecast", "asyncdiff"),
    "k": ("paper", "guided", "forecast", "asyncdiff"),
    "m": ("hybrid", "guided", "forecast"),
    "tolerance": ("hybrid",),
    "estimator": ("hybrid", "guided", "forecast"),
}


@dataclass(frozen=True, slots=True)
class Config:
    """What `optimize` was asked for.

    Attributes:
        gpus: number of ranks, 1 or 2. One rank runs the branches one after the other.
        mode: "exact" (condition-based partitioning at every step, Sec. 4.1), "paper" (its three
            stages, Sec. 4.2: guidance has no effect during the k pipelined steps), "hybrid" (steps
            are extrapolated where that is seen to do no harm), or one phase pinned by hand to the
            steps tau1 .. tau1 + k - 1: "guided" (pipelined, with guidance) or "forecast".
            "asyncdiff" is a baseline: both branches in one batch, pipelined from tau1=1 to the end.
        lowering: how a rank's programs are made to run.
        L_slope, eps_slope, k, tau_cap: switching of the paper's mode, as in `SwitchSettings`; None
            takes the paper's constant for the kind of denoiser, scaled to the run's steps. A value
            given here is used as it is, not scaled.
        tau1: forces the first pipelined step; the discrepancy is then not consulted.
        m, estimator: as in `Pinned` and `Controlled`.
        tolerance: as in `Controlled`, or one of TOLERANCES, which may come with its own m.
        dump: folder for the programs before and after each pass; None writes nothing.
        deadline: seconds without a sign of life after which the other rank is given up.
    """

    gpus: int = 2
    mode: Mode = "hybrid"
    lowering: Lowering = Lowering()
    L_slope: int | None = None
    eps_slope: float | None = None
    k: int | None = None
    tau_cap: int | None = None
    tau1: int | None = None
    m: int | None = None
    tolerance: float | str | None = None
    estimator: Estimator | None = None
    dump: Path | None = None
    deadline: float = 30.0

    def __post_init__(self) -> None:
        """Raise ConfigError for a value that no run could accept."""
        if type(self.gpus) is not int or self.gpus not in (1, 2):
            raise ConfigError(
                f"gpus={self.gpus!r}: one picture is made by 1 or 2 ranks; pass 1 or 2."
            )
        check_choice("mode", self.mode, get_args(Mode))
        if self.lowering.backend != "eager" and self.gpus != 2:
            raise ConfigError(
                f"backend={self.lowering.backend!r} compiles the programs of two ranks; pass "
                "gpus=2, or compile the pipeline's denoiser yourself (torch.compile)."
            )
        if self.mode in ("paper", "guided", "asyncdiff") and self.gpus != 2:
            raise ConfigError(
                f"mode={self.mode!r} pipelines two ranks; pass gpus=2, or another mode."
            )
        self._check_switching()
        if type(self.deadline) not in (int, float) or not 0.5 <= self.deadline <= 86_400:
            raise ConfigError(
                f"deadline={self.deadline!r} must be 0.5 to 86400 seconds, as an int or float."
            )

    def _check_switching(self) -> None:
        for name, value in self.given().items():
            if self.mode not in _MODES_OF[name]:
                raise ConfigError(
                    f"{name}={value!r} is for mode {' or '.join(_MODES_OF[name])}; drop it or "
                    "change mode."
                )
        for name in ("L_slope", "k", "tau_cap", "tau1", "m"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(
                    f"{name}={value!r} must be a whole number of steps, at least 1, as an int."
                )
        if self.m == 1 and self.mode in ("hybrid", "forecast"):
            raise ConfigError(f"m=1 extrapolates nothing in mode {self.mode!r}; pass 2 or more.")
        if self.estimator is not None:
            check_choice("estimator", self.estimator, get_args(Estimator))
        if isinstance(self.tolerance, str):
            check_choice("tolerance", self.tolerance, tuple(TOLERANCES))
        else:
            check_positive("tolerance", self.tolerance)
        check_positive("eps_slope", self.eps_slope)
        if isinstance(self.tolerance, int | float) and self.tolerance > _MOST_TOLERANCE:
            raise ConfigError(
                f"tolerance={self.tolerance!r} lets steps be wrong by more than "
                f"{_MOST_TOLERANCE:g} times the prediction; pass a smaller one ('fast' is "
                f"{TOLERANCES['fast'][0]:g})."
            )

    def given(self) -> dict[str, int | float | str]:
        """The switching settings that were given, by name."""
        values = {name: getattr(self, name) for name in _MODES_OF}
        return {name: value for name, value in values.items() if value is not None}

    def switching(self, family: SwitchSettings, steps: int) -> Switching:
        """Return how a run of `steps` steps switches, or None when the mode never does.

        Raises:
            ConfigError: the pipelined steps would not end within the run.
        """
        if self.mode == "exact":
            return None
        if self.mode == "hybrid":
            return self._controlled(steps)
        if self.mode == "paper":
            return self._paper(family, steps)
        first, last = (1, 0) if self.mode == "asyncdiff" else _ends(steps)
        tau1 = min(first, steps) if self.tau1 is None else self.tau1
        k = max(0, steps - last - tau1) if self.k is None else self.k
        _check_end("tau1", tau1, k, steps, "" if self.k else "chosen for such a run: k")
        if self.mode == "asyncdiff":
            return replace(family, tau1=tau1, k=k, drains=False)
        default = 1 if self.mode == "guided" else 2
        return Pinned(self.mode, tau1, k, self.m or default, self.estimator or "linear")

    def _controlled(self, steps: int) -> Controlled:
        given = "balanced" if self.tolerance is None else self.tolerance
        tolerance, m = TOLERANCES[given] if isinstance(given, str) else (given, _M)
        warm, tail = _ends(steps)
        return Controlled(tolerance, self.m or m, warm, tail, steps, self.estimator or "linear")

    def _paper(self, family: SwitchSettings, steps: int) -> SwitchSettings:
        base, given = family.scaled(steps), self.given()
        chosen = replace(base, **given)  # pyright: ignore[reportArgumentType]
        name, start = ("tau_cap", chosen.tau_cap) if chosen.tau1 is None else ("tau1", chosen.tau1)
        scaled = ", ".join(n for n in (name, "k") if n not in given)
        whose = f"of the paper, scaled to this run: {scaled}" if scaled else ""
        _check_end(name, start, chosen.k, steps, whose)
        return chosen


def _check_end(name: str, start: int, k: int, steps: int, whose: str) -> None:
    if start + k > steps:
        whose = f" ({whose})" if whose else ""
        raise ConfigError(
            f"{name}={start} and k={k}{whose} end at step {start + k}, after the run's "
            f"{steps} steps; set them lower, or use more steps or mode='exact'."
        )
