import pytest

from hybridiff_compile.bench.cost import FORWARDS, forwards, frontier
from hybridiff_compile.ir import Phase

S, P, U, C, F = Phase.SERIAL, Phase.PIPELINED, Phase.GUIDED_U, Phase.GUIDED_C, Phase.FORECAST


def test_every_phase_has_a_cost():
    assert set(FORWARDS) == set(Phase)


@pytest.mark.parametrize(
    ("phases", "cost"),
    [
        ([S] * 50, 50),
        ([S] * 45 + [P] * 5, 47.5),  # the paper's
        ([S] * 10 + [C, U] * 20, 30),  # guided pipelining of 40 of 50 steps
        ([S] * 10 + [F, S] * 20, 30),  # forecast, m = 2: half of 40 steps are computed
        ([S] * 10 + [F, F, F, S] * 10, 20),  # m = 4: a quarter of them
        ([], 0),
    ],
)
def test_forwards_of_known_schedules(phases, cost):
    assert forwards(phases) == cost


def test_asyncdiff_runs_both_branches_in_every_forward():
    assert forwards([S] + [P] * 49, "asyncdiff") == 2 * (1 + 49 * 0.5)


def test_the_frontier_leaves_out_what_another_point_beats():
    points = [(1.0, 100.0), (1.6, 45.0), (1.6, 58.0), (2.5, 46.0), (2.0, 40.0), (1.05, 40.0)]
    assert frontier(points) == [3, 2, 0]


def test_of_equal_points_one_is_on_the_frontier():
    assert frontier([(2.0, 50.0), (2.0, 50.0)]) == [0]
    assert frontier([(2.0, 50.0), (3.0, 50.0)]) == [1]
    assert frontier([]) == []
