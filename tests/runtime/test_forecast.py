"""A forecast over predictions that are known in advance: lines, which it extrapolates exactly."""

import pytest
import torch

from hybridiff_compile.ir import Phase
from hybridiff_compile.runtime.combination import weighted_error
from hybridiff_compile.runtime.estimate import Reading
from hybridiff_compile.runtime.forecast import Forecast

W = 5.0


def weigh(exact: torch.Tensor, estimate: torch.Tensor) -> Reading:
    weights, guided = torch.tensor([[1 - W, W]]), exact[0] + W * (exact[1] - exact[0])
    return Reading(weighted_error(exact, estimate, weights, guided.abs().mean()[None]))


def value(reading: Reading | None) -> float:
    assert reading is not None
    return float(reading)


def computed(f: Forecast, step: int, prediction: torch.Tensor) -> Reading | None:
    f.computed(step, prediction)
    return f.weighed(weigh)


def arrived(f: Forecast, step: int, phase: Phase, late: torch.Tensor) -> Reading | None:
    f.arrived(step, phase, late)
    return f.weighed(weigh)


def line(step: float, slope: float) -> torch.Tensor:
    return torch.full((1, 2), 1.0 + slope * step)


def both(step: float) -> torch.Tensor:
    return torch.cat([line(step, 1.0), line(step, 2.0)])


def forecast() -> Forecast:
    return Forecast("linear", [float(i) for i in range(20)], parts=2)


def test_estimate_goes_on_from_the_last_two_computed_steps():
    f = forecast()
    for i in (0, 1):
        assert computed(f, i, both(i)) is None  # there was nothing to estimate it from
    assert torch.allclose(f.estimate(5), both(5))


def test_error_of_a_computed_step_is_that_of_its_estimate():
    f = forecast()
    computed(f, 0, both(0))
    computed(f, 1, both(1))
    off = both(2) + torch.tensor([[0.0], [0.7]])
    error = computed(f, 2, off)
    guided = 3.0 + W * (5.7 - 3.0)
    assert value(error) == pytest.approx(W * 0.7 / guided, rel=1e-5)


def test_predicted_error_grows_with_the_distance_and_is_known_two_steps_later():
    f = forecast()
    for i in range(3):
        computed(f, i, both(i) + (0.1 if i == 2 else 0.0))
    assert f.predicted(3) is None
    near, far = f.predicted(4), f.predicted(6)
    assert near is not None
    assert far is not None
    assert far == pytest.approx(near * ((5 * 4) / (3 * 2)) ** 0.7)


def test_guided_steps_return_the_prediction_of_the_branch_before():
    f = forecast()
    computed(f, 0, both(0))
    computed(f, 1, both(1))
    garbage = torch.full((1, 2), float("nan"))
    assert arrived(f, 2, Phase.GUIDED_C, garbage) is None  # the pipeline has only begun to fill
    assert torch.allclose(f.estimate(2), both(2))
    exact_c = line(2, 2.0) + 0.5
    error = arrived(f, 3, Phase.GUIDED_U, exact_c)
    assert value(error) > 0
    u, c = f.estimate(3).chunk(2)
    assert torch.allclose(u, line(3, 1.0))
    assert torch.allclose(c, 2 * exact_c - line(1, 2.0))  # from steps 1 and 2 to 3
    assert value(arrived(f, 4, Phase.GUIDED_C, line(3, 1.0))) == pytest.approx(0, abs=1e-6)
    assert f.predicted(6) is None  # of a step that is extrapolated from two computed ones


def test_late_prediction_that_a_serial_step_has_overtaken_is_dropped():
    f = forecast()
    computed(f, 0, both(0))
    computed(f, 1, both(1))
    arrived(f, 2, Phase.GUIDED_C, line(0, 0.0))
    computed(f, 3, both(3))
    assert arrived(f, 4, Phase.GUIDED_C, torch.full((1, 2), float("nan"))) is None
    assert torch.allclose(f.estimate(4), both(4))


def test_error_is_known_once_it_is_weighed():
    f = forecast()
    for i in range(3):
        f.computed(i, both(i) + 0.1 * (i == 2))
    assert f.has_unweighed
    assert f.predicted(4) is None
    assert value(f.weighed(weigh)) > 0
    assert not f.has_unweighed
    assert f.weighed(weigh) is None
    assert f.predicted(4) is not None


def test_after_a_restart_nothing_is_left():
    f = forecast()
    for i in range(3):
        computed(f, i, both(i))
    f.arrived(3, Phase.GUIDED_C, line(0, 0.0))
    f.computed(4, both(4))
    f.restart()
    assert not f.has_unweighed
    assert f.predicted(6) is None
    f.computed(5, both(5)[:, :1])  # of another shape
    f.arrived(6, Phase.GUIDED_C, torch.full((1, 1), float("nan")))
    assert torch.equal(f.estimate(6), both(5)[:, :1])


def test_steps_after_the_end_of_the_run_are_computed_without_a_trace():
    f = forecast()
    for i in range(20):
        computed(f, i, both(i))
    assert f.predicted(19) is not None
    assert f.predicted(20) is None
    assert computed(f, 20, both(20)) is None
    assert not f.has_unweighed
    f.computed(19, 2 * both(19))
    assert torch.equal(f.estimate(19), 2 * both(19))  # all there is
