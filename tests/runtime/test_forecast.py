"""A forecast over predictions that are known in advance: lines, which it extrapolates exactly."""

import pytest
import torch

from hybridiff_compile.ir import Phase
from hybridiff_compile.runtime.estimate import Reading
from hybridiff_compile.runtime.forecast import Forecast

W = 5.0


def value(reading: Reading | None) -> float:
    assert reading is not None
    return float(reading)


def line(step: float, slope: float) -> torch.Tensor:
    return torch.full((1, 2), 1.0 + slope * step)


def both(step: float) -> torch.Tensor:
    return torch.cat([line(step, 1.0), line(step, 2.0)])


def forecast() -> Forecast:
    return Forecast("linear", [float(i) for i in range(20)], lambda: W)


def test_estimate_goes_on_from_the_last_two_computed_steps():
    f = forecast()
    for i in (0, 1):
        assert f.computed(i, both(i)) is None  # there was nothing to estimate it from
    assert torch.allclose(f.estimate(5), both(5))


def test_error_of_a_computed_step_is_that_of_its_estimate():
    f = forecast()
    f.computed(0, both(0))
    f.computed(1, both(1))
    off = both(2) + torch.tensor([[0.0], [0.7]])
    error = f.computed(2, off)
    guided = 3.0 + W * (5.7 - 3.0)
    assert value(error) == pytest.approx(W * 0.7 / guided, rel=1e-5)


def test_predicted_error_grows_with_the_distance_and_is_known_two_steps_later():
    f = forecast()
    for i in range(3):
        f.computed(i, both(i) + (0.1 if i == 2 else 0.0))
    assert f.predicted(3) is None
    near, far = f.predicted(4), f.predicted(6)
    assert near is not None
    assert far is not None
    assert far == pytest.approx(near * ((5 * 4) / (3 * 2)) ** 0.7)


def test_guided_steps_return_the_prediction_of_the_branch_before():
    f = forecast()
    f.computed(0, both(0))
    f.computed(1, both(1))
    garbage = torch.full((1, 2), float("nan"))
    assert f.arrived(2, Phase.GUIDED_C, garbage) is None  # the pipeline has only begun to fill
    assert torch.allclose(f.estimate(2), both(2))
    exact_c = line(2, 2.0) + 0.5
    error = f.arrived(3, Phase.GUIDED_U, exact_c)
    assert value(error) > 0
    u, c = f.estimate(3).chunk(2)
    assert torch.allclose(u, line(3, 1.0))
    assert torch.allclose(c, 2 * exact_c - line(1, 2.0))  # from steps 1 and 2 to 3
    assert value(f.arrived(4, Phase.GUIDED_C, line(3, 1.0))) == pytest.approx(0, abs=1e-6)


def test_late_prediction_that_a_serial_step_has_overtaken_is_dropped():
    f = forecast()
    f.computed(0, both(0))
    f.computed(1, both(1))
    f.arrived(2, Phase.GUIDED_C, line(0, 0.0))
    f.computed(3, both(3))
    assert f.arrived(4, Phase.GUIDED_C, torch.full((1, 2), float("nan"))) is None
    assert torch.allclose(f.estimate(4), both(4))
