import pytest
import torch

from hybridiff_compile.passes.balance import RATES, Cuts, Place, choose, node_costs
from hybridiff_compile.planning.cuts import candidates, pareto
from hybridiff_compile.planning.devices import Link
from tests import toy
from tests.passes.test_balance import exported

LINK = Link("test", rate=1e3, latency=0.5)


def test_frontier_has_no_place_that_another_one_beats():
    places = [
        Place(0, (10, 90), 1),  # far off balance
        Place(1, (45, 55), 30),
        Place(2, (49, 51), 50),
        Place(3, (50, 50), 70),
        Place(4, (51, 49), 60),  # as balanced as 2, and more bytes
        Place(5, (56, 44), 10),
    ]
    assert [p.index for p in pareto(places)] == [3, 2, 1, 5]


def test_candidates_have_the_seconds_of_their_stages_and_of_what_crosses():
    module = exported(toy.seeded(toy.Attention), torch.randn(1, 10, 16), torch.tensor(2.0))
    cuts = Cuts(module, RATES["cpu"])
    costs = node_costs(module, RATES["cpu"])
    seconds = {n: float(c) for n, c in costs.items()}
    found, chosen = candidates(cuts, seconds, LINK, prediction=640)
    best = choose(cuts.places())
    assert (found[chosen].cost, found[chosen].crossing) == (best.cost, best.crossing)
    for cut in found:
        stages = (cut.cycles[0] - (0.5 + cut.crossing / 1e3), cut.cycles[1] - (0.5 + 0.64))
        assert min(stages) > 0
        assert sum(stages) >= sum(seconds.values()) - 1e-6
        assert sum(stages) == pytest.approx(sum(cut.cost), rel=0.1)
    assert [c.crossing for c in found] == sorted((c.crossing for c in found), reverse=True)
    assert all(cut.where for cut in found)
