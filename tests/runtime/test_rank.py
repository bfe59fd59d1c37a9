"""Both ranks' guarded programs, run against each other: what they compute, and what they refuse."""

from collections.abc import Iterator

import pytest
import torch

from hybridiff_compile import links, ops
from hybridiff_compile.capture.branches import Branches
from hybridiff_compile.errors import PhaseMismatchError
from hybridiff_compile.ir import Phase
from hybridiff_compile.layout import UnpackCut
from hybridiff_compile.passes import build_programs
from hybridiff_compile.runtime.rank import Rank
from tests import toy
from tests.loopback import Pair, pair

SERIAL, PIPELINED = (Phase.SERIAL,) * 2, (Phase.PIPELINED,) * 2


@pytest.fixture(params=["exact", "paper"])
def serial(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with pair(build_programs(toy.captured().program, request.param)) as ranks:
        yield ranks


@pytest.fixture(params=["cpu", "cuda"])  # the latter's links as of two ranks on one card
def paper(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.setattr(links, "_card", lambda device: "the only card")
    programs = build_programs(toy.captured().program, "paper")
    with pair(programs, torch.device(request.param)) as ranks:
        yield ranks


@pytest.fixture
def guided() -> Iterator[Pair]:
    with pair(build_programs(toy.captured().program, "guided")) as ranks:
        yield ranks


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Links that a refused step leaves open are not registered, or torch complains at exit."""
    register, dropped = ops._register_work, []

    def only_stamps(tensor: torch.Tensor, work: object) -> None:
        dropped.append(work)
        if tensor.dtype == torch.int64:
            register(tensor, work)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(ops, "_register_work", only_stamps)


def branches_apart(seed: int) -> torch.Tensor:
    """The reference: the module itself, one branch after the other."""
    denoiser, call = toy.seeded(toy.Toy), toy.call_of(seed=seed)
    return torch.cat([toy.run(denoiser, call.branch(b)) for b in range(2)])


def inputs(seed: int) -> dict[str, torch.Tensor]:
    return Branches.of_batch(toy.call_of(seed=seed), toy.captured().rows).inputs()


def test_serial_step_has_the_bits_of_the_two_branches_one_after_the_other(serial):
    for seed in (1, 2, 3):
        returned, peer = serial.step(SERIAL, (seed, seed), inputs(seed))
        assert torch.equal(returned["prediction"], branches_apart(seed))
        assert "prediction" not in peer


def test_guided_steps_give_each_branch_exactly_one_step_late(guided):
    guided.step(SERIAL, (0, 0), inputs(1))
    late = []
    for i, branch in enumerate("cucuc", 1):
        phase = Phase.GUIDED_U if branch == "u" else Phase.GUIDED_C
        returned, peer = guided.step((phase, phase), (i, i), inputs(i + 1))
        assert "late" not in peer
        late.append(returned["late"])
    for i, branch in enumerate("cucu", 1):
        expected = branches_apart(i + 1).chunk(2)["uc".index(branch)]
        assert torch.equal(late[i], expected)
    assert not torch.equal(late[0], branches_apart(2)[1:])  # nothing had been sent before


def test_ranks_on_different_branches_are_refused(guided, forgetful):
    guided.step(SERIAL, (0, 0), inputs(1))
    first, second = guided.step((Phase.GUIDED_U, Phase.GUIDED_C), (1, 1), inputs(2))
    assert isinstance(first, PhaseMismatchError)
    assert isinstance(second, PhaseMismatchError)


def test_pipelined_step_is_stage1_of_the_previous_cut_with_the_embeddings_of_branch_c(paper):
    stage0, stage1 = (
        toy.cut().graphs[0].get_submodule("stage0"),
        toy.cut().graphs[1].get_submodule("stage1"),
    )
    returned, _ = paper.step(SERIAL, (0, 0), inputs(1))
    paper.ranks[1]._values[0]["cut"] = returned["cut"]  # the driver feeds it at the switch
    for i, seed in enumerate((2, 3, 4), 1):
        previous, now = inputs(seed - 1), inputs(seed)
        with torch.no_grad():
            features = stage0(*(previous[n] for n in _rank0_inputs()))
            expected = stage1(features, *(now[n] for n in _rank1_inputs()))
        returned, _ = paper.step(PIPELINED, (i, i), now)
        first, second = returned["prediction"].chunk(2)
        assert torch.equal(first, expected)
        assert torch.equal(second, expected)
        assert not torch.equal(expected, branches_apart(seed)[1:])


def _rank0_inputs() -> tuple[str, ...]:
    return toy.cut().contracts[0].inputs


def _rank1_inputs() -> tuple[str, ...]:
    return toy.skewed().contracts[1].inputs


def test_cut_that_a_serial_step_keeps_is_its_own_features(paper):
    returned, _ = paper.step(SERIAL, (0, 0), inputs(1))
    (unpack,) = [m for m in toy.skewed().graphs[1].modules() if isinstance(m, UnpackCut)]
    stage0 = toy.cut().graphs[0].get_submodule("stage0")
    with torch.no_grad():
        features = stage0(*(inputs(1)[n] for n in _rank0_inputs()))
    for a, b in zip(unpack(returned["cut"]), features, strict=True):
        assert torch.equal(a, b)


def test_serial_again_after_pipelining_is_exact_again(paper):
    returned, _ = paper.step(SERIAL, (0, 0), inputs(1))
    paper.ranks[1]._values[0]["cut"] = returned["cut"]
    paper.step(PIPELINED, (1, 1), inputs(2))
    returned, _ = paper.step(SERIAL, (2, 2), inputs(3))
    assert torch.equal(returned["prediction"], branches_apart(3))


@pytest.mark.usefixtures("forgetful")
def test_ranks_in_different_steps_refuse_each_other(paper):
    mine, theirs = paper.step(SERIAL, (4, 5), inputs(1))
    assert isinstance(mine, PhaseMismatchError)
    assert isinstance(theirs, PhaseMismatchError)
    assert "this rank is at (phase, step) (0, 4)" in str(mine)
    assert "rank 1 is at (0, 5)" in str(mine)
    assert "rank 0 is at (0, 4)" in str(theirs)


@pytest.mark.usefixtures("forgetful")
def test_ranks_in_different_phases_refuse_each_other(paper):
    paper.ranks[1]._values[0]["cut"] = torch.zeros(4096, dtype=torch.uint8)
    mine, theirs = paper.step((Phase.SERIAL, Phase.PIPELINED), (1, 1), inputs(1))
    assert isinstance(mine, PhaseMismatchError)
    assert isinstance(theirs, PhaseMismatchError)
    assert "rank 1 is at (1, 1)" in str(mine)


def test_inputs_that_did_not_change_are_kept_between_steps(serial):
    serial.step(SERIAL, (0, 0), inputs(1))
    first, second = (
        {name: inputs(seed)[name] for name in ("sample_u", "sample_c")} for seed in (1, 2)
    )
    returned, _ = serial.step(SERIAL, (1, 1), second)
    expected = branches_apart(1)
    assert not torch.equal(returned["prediction"], expected)
    returned, _ = serial.step(SERIAL, (2, 2), first)
    assert torch.equal(returned["prediction"], expected)


def test_many_steps_leave_no_unwaited_work(paper):
    returned, _ = paper.step(SERIAL, (0, 0), inputs(1))
    paper.ranks[1]._values[0]["cut"] = returned["cut"]
    for i in range(1, 20):
        paper.step(PIPELINED, (i, i), inputs(2))
    # torch keeps a registry of work for each thread
    assert paper.on_both(lambda _: ops.unwaited()) == (0, 0)


def test_sent_bytes_of_a_step_are_its_prediction_and_two_stamps(serial):
    before = ops.sent_bytes()
    serial.step(SERIAL, (0, 0), inputs(1))
    assert ops.sent_bytes() - before == 4 * 8 * 8 * 4 + 2 * 2 * 8


def test_values_of_two_keys_are_kept_apart_and_unload_forgets_them(paper):
    first, rank = paper.ranks[0], Rank()
    variants = [first.variant(0, p) for p in (Phase.SERIAL, Phase.PIPELINED)]
    rank.load(7, variants)
    rank._values[7]["sample_u"] = torch.ones(1)
    rank.load(8, variants)
    assert rank._values[8] == {}
    rank.unload(7)
    with pytest.raises(KeyError):
        rank.variant(7, Phase.SERIAL)
    assert rank.variant(8, Phase.SERIAL) is variants[0]
    assert rank.kept(8, ()) == {}
