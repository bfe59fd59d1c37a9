"""The phases of a run's steps in each mode, as the runtime would choose them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hybridiff_compile.bench.figures import Mode
from hybridiff_compile.config import Config, Controlled, Pinned, SwitchSettings
from hybridiff_compile.ir import Phase
from hybridiff_compile.runtime.switching import phase_of, pinned_phase

#: The modes that a plan compares, beside one device.
MODES: tuple[Mode, ...] = ("exact", "paper", "guided", "forecast", "hybrid", "asyncdiff")


def phases(mode: Mode, family: SwitchSettings, steps: int, k: int | None = None) -> list[Phase]:
    """The phase of every step.

    What depends on a picture is taken at its worst or best, as said: the paper's mode begins at
    tau_cap; hybrid extrapolates all that its m allows between the first and the last steps.

    Args:
        mode: one of MODES.
        family: the paper's constants for the kind of denoiser.
        steps: of the run.
        k: switched steps; None is the mode's own.

    Raises:
        ConfigError: the switched steps would not end within the run.
    """
    chosen: Any = mode
    settings = Config(mode=chosen, k=k).switching(family, steps)
    if isinstance(settings, Controlled):
        count = max(0, steps - settings.warm - settings.tail)
        settings = Pinned("forecast", settings.warm, count, settings.m, settings.estimator)
    if isinstance(settings, Pinned):
        return [pinned_phase(i, settings) for i in range(steps)]
    if settings is not None and settings.tau1 is None:
        settings = replace(settings, tau1=settings.tau_cap)
    tau1 = None if settings is None else settings.tau1
    return [phase_of(i, tau1, settings) for i in range(steps)]
