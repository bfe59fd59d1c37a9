"""A rank's programs alone, and the clock."""

import time

import pytest
import torch

from hybridiff_compile.capture.branches import Branches
from hybridiff_compile.config import Lowering
from hybridiff_compile.ir import Phase
from hybridiff_compile.passes import build_programs
from hybridiff_compile.planning import clock, link_probe
from hybridiff_compile.planning.alone import Alone
from hybridiff_compile.planning.devices import Link
from tests import toy

CPU = torch.device("cpu")


@pytest.fixture
def alone() -> Alone:
    programs = build_programs(toy.captured().program, "paper")
    values = Branches.of_batch(toy.call_of(), toy.captured().rows).inputs()
    with torch.no_grad():
        return Alone(programs, Lowering(), values, CPU)


def test_a_ranks_program_alone_computes_what_two_ranks_do(alone: Alone) -> None:
    call = toy.call_of()
    with torch.no_grad():
        serial = alone.step(0, Phase.SERIAL)["prediction"]
        alone.step(1, Phase.PIPELINED)
        pipelined = alone.step(0, Phase.PIPELINED)["prediction"]
    expected = [toy.run(toy.seeded(toy.Toy), call.branch(b)) for b in range(2)]
    assert torch.equal(serial, torch.cat(expected))
    # The cut is of this same step, made from branch u, and stage1 reads the embeddings of branch c.
    assert torch.equal(*pipelined.chunk(2))
    assert not torch.equal(pipelined[:1], expected[0])


def test_times_are_of_what_was_run_and_of_the_stated_link(alone: Alone) -> None:
    assert (alone.cut_bytes, alone.prediction_bytes) == (4096, 4 * 8 * 8 * 4)
    link = Link("stated", rate=1e3, latency=2.0)
    with torch.no_grad():
        t = alone.times(alone.samples(lambda: time.sleep(0.05), rounds=3), link, own=0.25)
    assert (t.cut, t.prediction, t.own) == (2 + 4.096, 2 + 1.024, 0.25)
    assert t.both >= 0.05
    assert min(*t.branch, *t.stages) > 0
    assert t.stages_of_both[0] == pytest.approx(t.stages[0] * t.both / max(t.branch))


def test_samples_are_by_part_and_their_medians_are_the_times(alone: Alone) -> None:
    taken = alone.samples(lambda: time.sleep(0.05), rounds=2, warm_up=1)
    assert [len(part) for part in taken] == [2] * 5
    assert min(taken[0]) >= 0.05
    made_up = [[6.0, 9.0, 8.0], [4.0] * 3, [5.0, 5.0, 1.0], [2.0, 1.0, 9.0], [3.0] * 3]
    t = alone.times(made_up, Link("stated", rate=1e3, latency=2.0), own=0.25)
    assert (t.both, t.branch, t.stages, t.own) == (8.0, (4.0, 5.0), (2.0, 3.0), 0.25)


def test_calls_take_turns_after_warming_up() -> None:
    order: list[str] = []
    clock.samples([lambda: order.append("a"), lambda: order.append("b")], CPU, rounds=2)
    assert "".join(order) == "aaa" + "bbb" + "abab"


def test_each_round_is_clocked_by_itself() -> None:
    naps = iter([0, 0, 0, 0.2, 0.02, 0])
    ((first, second, third),) = clock.samples([lambda: time.sleep(next(naps))], CPU, rounds=3)
    assert first >= 0.2
    assert second >= 0.02
    assert third < 0.02


def test_a_measured_link_has_a_rate_and_a_latency() -> None:
    link = link_probe.measure(CPU, CPU)
    assert link.name == "here"
    assert 1e7 < link.rate < 1e12
    assert 0 < link.latency < 1


def test_a_helper_that_cannot_start_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from hybridiff_compile.errors import WorkerError
    from hybridiff_compile.runtime import spawn

    monkeypatch.setattr(spawn, "environment", lambda: {"PYTHONHOME": "/nowhere"})
    with pytest.raises(WorkerError, match=r"measures the link ended with exit code 1; measure"):
        link_probe.measure(CPU, CPU)
