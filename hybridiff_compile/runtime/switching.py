"""When to pipeline: pure functions of the discrepancies seen so far (paper Sec. 4.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hybridiff_compile.config import Controlled, Pinned, SwitchSettings
from hybridiff_compile.ir import Phase


def discrepancy(eps_u: torch.Tensor, eps_c: torch.Tensor) -> torch.Tensor:
    """Denoising discrepancy M_i = mean|eps_c - eps_u| / mean|eps_u| (rel-MAE).

    Args:
        eps_u, eps_c: the branches' predictions, any equal shape and dtype.

    Returns:
        A 0-dim float32 tensor on their device, so that nothing waits for it until it is read.

    Paper: Jung et al. 2026, Eq. (1).
    """
    u, c = eps_u.float(), eps_c.float()
    return (c - u).abs().mean() / u.abs().mean()


def slope(discrepancies: Sequence[float], i: int, lag: int) -> float:
    """G_i = (M_{i-L} - M_i) / L, positive while M falls. Paper: Eq. (2)."""
    return (discrepancies[i - lag] - discrepancies[i]) / lag


def find_tau1(discrepancies: Sequence[float], settings: SwitchSettings) -> int | None:
    """First pipelined step, or None while the steps seen so far do not tell.

    Args:
        discrepancies: M_0 .. M_{i-1} of the steps already run, all of them serial.
        settings: the run's switching; a forced tau1 is returned as it is.

    Returns:
        min(tau1', tau_cap) with tau1' = 1 + the first i >= L where 0 <= G_i < g.

    Paper: Sec. 4.3, Eq. (2).
    """
    if settings.tau1 is not None:
        return settings.tau1
    seen = min(len(discrepancies), settings.tau_cap)
    for i in range(settings.L_slope, seen):
        if 0 <= slope(discrepancies, i, settings.L_slope) < settings.eps_slope:
            return min(i + 1, settings.tau_cap)
    return settings.tau_cap if seen == settings.tau_cap else None


def phase_of(step: int, tau1: int | None, settings: SwitchSettings | None) -> Phase:
    """PIPELINED for tau1 <= step < tau2 = tau1 + k (Eq. 3), SERIAL before and after.

    The last one is DRAINED where the settings say so.
    """
    if settings is None or tau1 is None or not tau1 <= step < tau1 + settings.k:
        return Phase.SERIAL
    is_last = step == tau1 + settings.k - 1
    return Phase.DRAINED if is_last and settings.drains else Phase.PIPELINED


def pinned_phase(step: int, settings: Pinned) -> Phase:
    """The phase of a step when guided pipelining or forecasting was pinned to tau1 .. tau1 + k.

    Guided, every m-th step moves the pipeline on, by one branch in turn; forecasting, every m-th
    step is computed. The others are extrapolated.
    """
    i = step - settings.tau1
    if not 0 <= i < settings.k:
        return Phase.SERIAL
    if settings.mode == "forecast":
        return Phase.SERIAL if i % settings.m == settings.m - 1 else Phase.FORECAST
    if i % settings.m:
        return Phase.FORECAST
    return Phase.GUIDED_U if i // settings.m % 2 else Phase.GUIDED_C


def controlled_phase(
    step: int,
    computed: Sequence[int],
    predicted: float | None,
    settings: Controlled,
    begun: int = 0,
) -> tuple[Phase, str]:
    """Extrapolate a step, or compute it, by the error that the extrapolation would make.

    Args:
        step: counted from 0.
        computed: the steps computed so far.
        predicted: weighted error that extrapolating this step would make; None if nothing tells.
        settings: of the run.
        begun: the step that the predictions begin at: not 0 where an input has changed since.

    Returns:
        The phase, and why.
    """
    if step >= settings.steps - settings.tail:
        return Phase.SERIAL, f"the last {settings.tail} steps are computed"
    if step < begun + settings.warm or predicted is None:
        return Phase.SERIAL, "warm-up"
    since = step - computed[-1]
    if since >= settings.m:
        return Phase.SERIAL, f"computed after {since - 1} extrapolated steps (m = {settings.m})"
    what = f"an extrapolation would be off by {predicted:.4f}, tolerance {settings.tolerance:g}"
    return Phase.FORECAST if predicted <= settings.tolerance else Phase.SERIAL, what


def counted(phases: Sequence[Phase]) -> list[str]:
    """What each step counts as: the phase that it lies in, computed or extrapolated.

    A step that was computed between two extrapolated ones lies in the forecast phase.
    """
    kinds = [phase.kind for phase in phases]
    around = zip([Phase.SERIAL, *phases], phases, [*phases[1:], Phase.SERIAL], strict=False)
    for i, (before, own, after) in enumerate(around):
        if own is Phase.SERIAL and before is after is Phase.FORECAST:
            kinds[i] = Phase.FORECAST.kind
    return kinds
