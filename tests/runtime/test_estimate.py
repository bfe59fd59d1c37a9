import math
from types import SimpleNamespace

import pytest
import torch

from hybridiff_compile.runtime.estimate import (
    History,
    Reading,
    axis,
    growth,
    weights,
)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_polynomial_of_as_many_terms_is_extrapolated_exactly(count):
    def curve(x: float) -> torch.Tensor:
        return torch.tensor([sum((i + 1) * x**i for i in range(count))], dtype=torch.float64)

    history = History(count)
    for x in (0.0, 1.0, 4.0, 6.0):
        history.note(x, curve(x))
    assert history.nodes == [0.0, 1.0, 4.0, 6.0][-count:]
    assert torch.allclose(history.estimate(9.5), curve(9.5))
    assert torch.equal(history.estimate(9.5), history.estimate(9.0)) is (count == 1)


def test_weights_sum_to_one_and_hold_is_the_last_value():
    assert weights([2.0], 7.0) == [1.0]
    assert weights([2.0, 3.0], 4.0) == [-1.0, 2.0]
    assert sum(weights([0.0, 2.0, 3.0], 5.0)) == pytest.approx(1.0)


def test_history_says_when_the_estimator_has_all_that_it_reads():
    history = History(2)
    history.note(0.0, torch.ones(1))
    assert not history.is_full
    assert torch.equal(history.estimate(3.0), torch.ones(1))  # all there is
    history.note(1.0, torch.ones(1))
    assert history.is_full


def test_estimate_keeps_the_dtype_and_computes_in_float32():
    history = History(2)
    history.note(0.0, torch.full((1,), 60_000.0, dtype=torch.float16))
    history.note(1.0, torch.full((1,), 60_000.0, dtype=torch.float16))
    estimate = history.estimate(2.0)  # 2 * 60000 overflows float16
    assert (estimate.dtype, estimate.item()) == (torch.float16, 60_000.0)


def test_growth_is_the_product_of_the_distances():
    assert growth([1.0, 4.0], 6.0) == 10.0
    assert growth([3.0], 1.0) == 2.0


def test_number_that_is_on_the_cpu_already_is_read_at_once():
    assert float(Reading(torch.tensor(0.25))) == 0.25
    assert Reading(torch.tensor([[0.25, 1.0]])).tolist() == [[0.25, 1.0]]


FLOW = SimpleNamespace(sigmas=torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))
EULER = SimpleNamespace(sigmas=torch.tensor([14.0, 4.0, 1.0, 0.0]))
DDIM = SimpleNamespace(alphas_cumprod=torch.tensor([0.9, 0.5, 0.1]), timesteps=[2, 1, 0])


def test_axis_of_the_step_index():
    for estimator in ("hold", "linear", "quadratic"):
        assert axis(EULER, 3, estimator) == [0.0, 1.0, 2.0]


def test_axis_of_sigma_and_log_snr():
    assert axis(FLOW, 4, "sigma") == [1.0, 0.75, 0.5, 0.25]
    assert axis(FLOW, 4, "logsnr")[2] == pytest.approx(0.0)
    assert axis(EULER, 3, "logsnr") == pytest.approx([-2 * math.log(s) for s in (14, 4, 1)])
    assert axis(DDIM, 3, "logsnr") == pytest.approx(
        [math.log(a / (1 - a)) for a in (0.1, 0.5, 0.9)]
    )
    assert axis(DDIM, 3, "sigma") == pytest.approx([math.sqrt(x) for x in (0.9, 0.5, 0.1)])


def test_run_of_the_last_steps_lies_where_they_do():
    assert axis(FLOW, 2, "sigma") == [0.5, 0.25]  # img2img leaves the first steps out
    assert axis(EULER, 1, "logsnr") == [0.0]  # its last noise level, 1, makes it no flow


def test_axis_falls_back_to_the_index():
    assert axis(SimpleNamespace(), 2, "sigma") == [0.0, 1.0]
    repeated = SimpleNamespace(sigmas=torch.tensor([4.0, 4.0, 0.0]))
    assert axis(repeated, 2, "sigma") == [0.0, 1.0]
