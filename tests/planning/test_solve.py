"""The program's optimum against trying everything."""

import itertools

import pytest

from hybridiff_compile.errors import ConfigError
from hybridiff_compile.planning.solve import Cut, Kind, solve

CUTS = (Cut(5.4, 5.0), Cut(5.1, 5.2), Cut(4.9, 5.6))
KINDS = (
    Kind("paper", 1, error=6e-5, most=7),
    Kind("guided", 1, error=4e-7, most=8),
    Kind("forecast", 2, error=1e-8, most=8),
    Kind("forecast", 4, error=3e-6, most=8),
)


def tried(steps, serial, cuts, kinds, budget):
    """Seconds of the fastest run, by trying every kind, count and cut."""
    found = [steps * serial]
    for kind, cut in itertools.product(kinds, cuts):
        each = serial if kind.name == "forecast" else max(cut.first, cut.last)
        counts = [n for n in range(kind.most + 1) if kind.error * n <= budget + 1e-12]
        found += [(steps - n) * serial + n // kind.m * each for n in counts]
    return min(found)


@pytest.mark.parametrize("budget", [0, 1e-8, 5e-8, 1e-6, 4e-6, 2e-5, 1e-4, 1.0])
@pytest.mark.parametrize("kinds", [KINDS, KINDS[:1], KINDS[:2], KINDS[3:]], ids=len)
def test_nothing_faster_is_found_by_trying_everything(budget, kinds):
    best = solve(12, 10.0, CUTS, kinds, budget)
    assert best.seconds == pytest.approx(tried(12, 10.0, CUTS, kinds, budget))
    if best.kind is not None:
        assert best.steps * best.kind.error <= budget + 1e-12
        assert 0 < best.steps <= best.kind.most


def test_the_cut_is_that_of_the_shortest_cycle():
    assert solve(12, 10.0, CUTS, KINDS[:1], 1.0).cut == 1


def test_without_a_budget_or_a_kind_every_step_is_serial():
    for kinds, budget in ((KINDS, 0.0), ((), 1.0)):
        best = solve(12, 10.0, CUTS, kinds, budget)
        assert (best.seconds, best.kind, best.steps) == (120.0, None, 0)


def test_a_link_so_slow_that_pipelining_loses_is_not_used():
    assert solve(12, 10.0, [Cut(11.0, 5.0)], KINDS[:2], 1.0).kind is None


def test_a_run_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="no run of 12 steps"):
        solve(12, 10.0, CUTS, KINDS, -1.0)
