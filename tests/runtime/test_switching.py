import re
from dataclasses import replace

import pytest
import torch

from hybridiff_compile.config import Controlled, Pinned, SwitchSettings
from hybridiff_compile.ir import Phase
from hybridiff_compile.runtime.switching import (
    controlled_phase,
    counted,
    discrepancy,
    find_tau1,
    phase_of,
    pinned_phase,
    slope,
)

# U-shaped; with L = 2: G_2 .. G_7 = 0.19, 0.15, 0.09, 0.04, -0.005, -0.04
CURVE = [1.0, 0.8, 0.62, 0.5, 0.44, 0.42, 0.45, 0.5]


def settings(
    L: int = 2, eps: float = 0.05, k: int = 3, cap: int = 20, tau1: int | None = None
) -> SwitchSettings:
    return SwitchSettings(L_slope=L, eps_slope=eps, k=k, tau_cap=cap, tau1=tau1)


def test_discrepancy_is_the_mean_absolute_difference_over_the_mean_of_the_unconditional():
    u = torch.tensor([[1.0, -2.0], [3.0, -4.0]])  # mean|u| = 2.5
    c = torch.tensor([[1.5, -1.5], [2.5, -3.5]])  # mean|c - u| = 0.5
    assert discrepancy(u, c).item() == pytest.approx(0.2)
    assert discrepancy(c, u).item() == pytest.approx(0.5 / 2.25)
    assert discrepancy(u, u).item() == 0


def test_discrepancy_of_half_precision_is_computed_in_float32():
    u = torch.full((70_000,), 2.0, dtype=torch.float16)  # its sum overflows float16
    m = discrepancy(u, u * 1.5)
    assert (m.dtype, m.shape) == (torch.float32, ())
    assert m.item() == pytest.approx(0.5)


def test_slope_divides_by_the_lag():
    assert slope(CURVE, 5, 2) == pytest.approx((0.5 - 0.42) / 2)
    assert slope(CURVE, 3, 3) == pytest.approx((1.0 - 0.5) / 3)


def test_tau1_follows_the_first_step_whose_slope_is_below_the_threshold():
    assert find_tau1(CURVE, settings()) == 6  # 1 + 5: G_4 = 0.09 is too steep, G_5 = 0.04 is not
    assert find_tau1(CURVE, settings(eps=0.1)) == 5
    assert find_tau1(CURVE, settings(eps=0.2)) == 3


def test_no_decision_before_the_step_that_decides_has_run():
    for seen in range(6):
        assert find_tau1(CURVE[:seen], settings()) is None
    assert find_tau1(CURVE[:6], settings()) == 6


def test_threshold_itself_is_still_too_steep():
    falling = [1.0, 0.75, 0.5, 0.25]
    assert find_tau1(falling, settings(L=1, eps=0.25)) is None
    assert find_tau1(falling, settings(L=1, eps=0.26)) == 2


def test_rising_discrepancy_is_no_plateau():
    rising = [0.1 + 0.01 * i for i in range(10)]
    assert find_tau1(rising, settings()) is None
    assert find_tau1(rising, settings(cap=10)) == 10


def test_level_discrepancy_is_a_plateau():
    assert find_tau1([0.5] * 3, settings()) == 3


def test_first_slope_is_that_of_step_l():
    assert find_tau1([0.5] * 3, settings(L=3)) is None
    assert find_tau1([0.5] * 4, settings(L=3)) == 4


def test_cap_decides_once_its_steps_have_run_even_before_the_first_slope():
    assert find_tau1(CURVE[:3], settings(cap=4)) is None
    assert find_tau1(CURVE[:4], settings(cap=4)) == 4
    assert find_tau1(CURVE, settings(cap=4)) == 4
    assert find_tau1(CURVE[:2], settings(L=12, cap=2)) == 2


def test_cap_at_the_deciding_step_changes_nothing():
    assert find_tau1(CURVE, settings(cap=6)) == 6
    assert find_tau1(CURVE, settings(cap=5)) == 5


def test_forced_tau1_is_not_looked_for():
    assert find_tau1([], settings(tau1=9)) == 9
    assert find_tau1(CURVE, settings(tau1=1, cap=4)) == 1


def test_pipelined_steps_are_tau1_to_tau2_less_one():
    assert letters([phase_of(i, 4, settings(k=3)) for i in range(9)]) == "SSSSPPDSS"
    assert letters([phase_of(i, 4, settings(k=1)) for i in range(6)]) == "SSSSDS"


def test_last_pipelined_step_is_drained_only_where_the_mode_drains():
    kept = replace(settings(k=3), drains=False)
    assert letters([phase_of(i, 4, kept) for i in range(9)]) == "SSSSPPPSS"


def test_serial_without_switching_or_decision():
    assert phase_of(5, 4, None) is Phase.SERIAL
    assert phase_of(5, None, settings()) is Phase.SERIAL


def letters(phases: list[Phase]) -> str:
    return "".join("SPUCFD"[phase] for phase in phases)


@pytest.mark.parametrize(
    ("mode", "m", "expected"),
    [
        ("guided", 1, "SSCUCUCUSS"),
        ("guided", 2, "SSCFUFCFSS"),
        ("forecast", 2, "SSFSFSFSSS"),
        ("forecast", 3, "SSFFSFFSSS"),
        ("forecast", 4, "SSFFFSFFSS"),
    ],
)
def test_pinned_phases(mode, m, expected):
    pinned = Pinned(mode, tau1=2, k=6, m=m, estimator="linear")
    assert letters([pinned_phase(i, pinned) for i in range(10)]) == expected


CONTROLLED = Controlled(tolerance=0.1, m=3, warm=4, tail=2, steps=20, estimator="linear")


@pytest.mark.parametrize(
    ("step", "computed", "predicted", "phase", "why"),
    [
        (3, [0, 1, 2], 0.0, Phase.SERIAL, "warm-up"),
        (4, [0, 1, 2, 3], None, Phase.SERIAL, "warm-up"),
        (4, [2, 3], 0.1, Phase.FORECAST, "off by 0.1000, tolerance 0.1"),
        (4, [2, 3], 0.11, Phase.SERIAL, "off by 0.1100, tolerance 0.1"),
        (6, [3, 4], 0.0, Phase.FORECAST, "off by 0.0000"),
        (7, [3, 4], 0.0, Phase.SERIAL, r"computed after 2 extrapolated steps \(m = 3\)"),
        (17, [15, 16], 0.0, Phase.FORECAST, "off by"),
        (18, [15, 16], 0.0, Phase.SERIAL, "the last 2 steps"),
    ],
)
def test_step_is_extrapolated_while_its_error_stays_within_the_tolerance(
    step, computed, predicted, phase, why
):
    chosen, reason = controlled_phase(step, computed, predicted, CONTROLLED)
    assert chosen is phase
    assert re.search(why, reason)


def test_warm_up_counts_from_where_the_predictions_begin():
    for begun, phase in ((0, Phase.FORECAST), (9, Phase.FORECAST), (10, Phase.SERIAL)):
        assert controlled_phase(13, [11, 12], 0.0, CONTROLLED, begun)[0] is phase


def test_step_computed_between_extrapolated_ones_counts_with_them():
    phases = [Phase("SPUCF".index(letter)) for letter in "SSFFSFSSFCUPS"]
    kinds = "".join(kind[0] for kind in counted(phases))
    assert kinds == "ssffffssfppps"
