"""Frozen settings: what `optimize` was asked for, and what a run of T steps makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, get_args

from hybridiff_compile.errors import ConfigError

Mode = Literal["exact", "paper"]
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
    """

    L_slope: int
    eps_slope: float
    k: int
    tau_cap: int
    tau1: int | None = None

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
            _check_choice("backend", self.backend, [b for b in get_args(Backend) if b != "aot"])
        _check_choice("scope", self.scope, get_args(Scope))
        if self.compile_mode is not None:
            _check_choice("compile_mode", self.compile_mode, get_args(CompileMode))
            if self.backend != "inductor":
                raise ConfigError(
                    f"compile_mode={self.compile_mode!r} is Inductor's; pass backend='inductor'."
                )
        if self.scope != "stage" and self.backend != "inductor":
            raise ConfigError(
                f"scope={self.scope!r} needs backend='inductor'; {self.backend!r} runs stages."
            )


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}={value!r} is unknown; choose one of {', '.join(choices)}.")


@dataclass(frozen=True, slots=True)
class Config:
    """What `optimize` was asked for.

    Attributes:
        gpus: number of ranks, 1 or 2. One rank runs the branches one after the other.
        mode: "exact" (condition-based partitioning at every step, Sec. 4.1) or "paper" (its three
            stages, Sec. 4.2: guidance has no effect during the k pipelined steps).
        lowering: how a rank's programs are made to run.
        L_slope, eps_slope, k, tau_cap: switching of the paper's mode, as in `SwitchSettings`; None
            takes the paper's constant for the kind of denoiser, scaled to the run's steps. A value
            given here is used as it is, not scaled.
        tau1: forces the first pipelined step; the discrepancy is then not consulted.
        dump: folder for the programs before and after each pass; None writes nothing.
    """

    gpus: int = 2
    mode: Mode = "exact"
    lowering: Lowering = Lowering()
    L_slope: int | None = None
    eps_slope: float | None = None
    k: int | None = None
    tau_cap: int | None = None
    tau1: int | None = None
    dump: Path | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for a value that no run could accept."""
        if type(self.gpus) is not int or self.gpus not in (1, 2):
            raise ConfigError(
                f"gpus={self.gpus!r}: one picture is made by 1 or 2 ranks; pass 1 or 2."
            )
        _check_choice("mode", self.mode, get_args(Mode))
        if self.lowering.backend != "eager" and self.gpus != 2:
            raise ConfigError(
                f"backend={self.lowering.backend!r} compiles the programs of two ranks; pass "
                "gpus=2, or compile the pipeline's denoiser yourself (torch.compile)."
            )
        if self.mode == "paper" and self.gpus != 2:
            raise ConfigError("mode='paper' pipelines two ranks; pass gpus=2, or mode='exact'.")
        self._check_switching()

    def _check_switching(self) -> None:
        for name in ("L_slope", "k", "tau_cap", "tau1"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{name}={value!r} must be a whole number of steps, at least 1.")
        if self.eps_slope is not None and (
            type(self.eps_slope) not in (int, float) or not self.eps_slope > 0
        ):
            raise ConfigError(f"eps_slope={self.eps_slope!r} must be above 0, a number.")
        given = self.given()
        if given and self.mode != "paper":
            raise ConfigError(
                f"{', '.join(given)}: only mode='paper' switches; drop it or change mode."
            )

    def given(self) -> dict[str, int | float]:
        """The switching settings that were given, by name."""
        values = {f.name: getattr(self, f.name) for f in fields(SwitchSettings)}
        return {name: value for name, value in values.items() if value is not None}

    def switching(self, family: SwitchSettings, steps: int) -> SwitchSettings | None:
        """Return the switching of a run of `steps` steps, or None when the mode never switches.

        Raises:
            ConfigError: the pipelined steps would not end within the run.
        """
        if self.mode != "paper":
            return None
        base = family.scaled(steps)
        given = self.given()
        chosen = replace(base, **given)  # pyright: ignore[reportArgumentType]
        name, start = ("tau_cap", chosen.tau_cap) if chosen.tau1 is None else ("tau1", chosen.tau1)
        if start + chosen.k > steps:
            scaled = [n for n in (name, "k") if n not in given]
            whose = f" (of the paper, scaled to this run: {', '.join(scaled)})" if scaled else ""
            raise ConfigError(
                f"{name}={start} and k={chosen.k}{whose} end at step {start + chosen.k}, after the "
                f"run's {steps} steps; set them lower, or use more steps or mode='exact'."
            )
        return chosen
