import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from torch._subclasses import FakeTensorMode

from hybridiff_compile import links as joins
from hybridiff_compile import ops
from hybridiff_compile.errors import PhaseMismatchError
from tests import toy
from tests.loopback import pair

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def stamp(phase: int, step: int) -> torch.Tensor:
    return torch.tensor([phase, step])


def test_groups_are_named_by_direction():
    assert joins.group_name(0, 1) == "data0to1"
    assert joins.group_name(1, 0, stamp=True) == "stamp1to0"


@pytest.fixture(params=[CPU, CUDA], ids=["gloo", "staged"])
def links(request, monkeypatch) -> torch.device:
    """Whose links to use: two ranks on one card stage theirs through host memory."""
    monkeypatch.setattr(joins, "_card", lambda device: "the only card")
    return request.param


def test_tensor_that_is_sent_arrives_with_its_values(links):
    value = torch.randn(3, 4).t()  # not contiguous

    def exchange(rank: int) -> torch.Tensor:
        if rank == 0:
            return ops.wait(ops.send(value, 1, 5, "data0to1"))
        return ops.wait(ops.recv([4, 3], torch.float32, CPU, 0, 5, "data0to1"))

    before = ops.sent_bytes()
    with pair({}, links) as ranks:
        token, arrived = ranks.on_both(exchange)
        assert ranks.on_both(lambda _: ops.unwaited()) == (0, 0)
    assert torch.equal(arrived, value)
    assert arrived.is_contiguous()
    assert token.numel() == 0
    assert ops.sent_bytes() - before == 3 * 4 * 4


def test_messages_with_different_tags_may_be_awaited_in_any_order(links):
    def exchange(rank: int) -> list[torch.Tensor]:
        if rank == 0:
            tokens = [ops.send(torch.full((2,), float(t)), 1, t, "data0to1") for t in range(3)]
            return [ops.wait(t) for t in tokens]
        posted = [ops.recv([2], torch.float32, CPU, 0, t, "data0to1") for t in (2, 0, 1)]
        return [ops.wait(t) for t in reversed(posted)]

    with pair({}, links) as ranks:
        _, arrived = ranks.on_both(exchange)
    assert [t[0].item() for t in arrived] == [1, 0, 2]


def test_every_pair_of_ranks_has_a_group_for_data_and_one_for_stamps():
    with pair({}) as ranks:
        assert sorted(ranks.groups[0]) == ["data0to1", "data1to0", "stamp0to1", "stamp1to0"]


def test_only_ranks_that_share_a_card_stage_their_links(monkeypatch):
    made = []
    monkeypatch.setattr(joins.dist, "ProcessGroupNCCL", Nccl(made), raising=False)
    for cards, staged in ((("a", "b"), False), (("b", "b"), True)):
        monkeypatch.setattr(joins, "_card", lambda device, cards=cards: cards[device.index])
        store = dist.HashStore()

        def join(rank: int, store: dist.Store = store) -> joins.Groups:
            return joins.connect(store, rank, 2, torch.device("cuda", rank), loopback=True)

        with ThreadPoolExecutor(2) as threads:
            for groups in threads.map(join, range(2)):
                for name in ("data0to1", "data1to0"):
                    assert isinstance(groups[name], joins._Staged) is staged
                assert isinstance(groups["stamp0to1"], dist.ProcessGroupGloo)
    assert len(made) == 4  # a group a direction, on each of two ranks


class Nccl:
    """Stands in for a process group that needs cards."""

    def __init__(self, made: list) -> None:
        self.made = made
        self.Options = types.SimpleNamespace

    def __call__(self, *args: object) -> object:
        self.made.append(args)
        return object()


def test_op_on_a_link_that_is_not_connected_is_refused(monkeypatch):
    monkeypatch.setattr(ops._active, "groups", {}, raising=False)
    with pytest.raises(RuntimeError, match=r"link group 'data0to1' is not connected; it has \[\]"):
        ops.send(torch.ones(1), 1, 0, "data0to1")
    with pytest.raises(RuntimeError, match="link group 'data1to0' is not connected"):
        ops.recv([1], torch.float32, CPU, 1, 0, "data1to0")


def test_ops_on_fake_tensors_give_the_shapes_without_a_link(monkeypatch):
    monkeypatch.setattr(ops._active, "groups", {}, raising=False)
    with FakeTensorMode():
        token = ops.SEND(torch.empty(3), 1, 0, "data0to1")
        value = ops.RECV([2, 5], torch.float16, CPU, 1, 0, "data1to0")
        checked = ops.GUARD(torch.empty(2).long(), torch.empty(2).long(), 0, 1)
    assert (token.shape, token.dtype) == ((0,), torch.uint8)
    assert (value.shape, value.dtype) == ((2, 5), torch.float16)
    assert (checked.shape, checked.dtype) == ((2,), torch.int64)


def test_guard_returns_the_stamp_when_all_agree():
    own = stamp(1, 7)
    out = ops.GUARD(own, stamp(1, 7), 1, 0)
    assert torch.equal(out, own)
    assert out.data_ptr() != own.data_ptr()


@pytest.mark.parametrize(
    ("own", "peer", "phase"),
    [((0, 7), (0, 8), 0), ((0, 7), (1, 7), 0), ((1, 7), (1, 7), 0)],
    ids=["step", "peer's phase", "program's phase"],
)
def test_guard_refuses_what_differs(own, peer, phase):
    with pytest.raises(PhaseMismatchError) as e:
        ops.GUARD(stamp(*own), stamp(*peer), phase, 1)
    assert f"this rank is at (phase, step) {own} in a program of phase {phase}" in str(e.value)
    assert f"rank 1 is at {peer}" in str(e.value)
    assert "start it again" in str(e.value)


def test_nodes_are_told_apart():
    kinds = (ops.is_send, ops.is_recv, ops.is_wait, ops.is_guard)
    nodes = [n for m in toy.guarded().graphs for n in m.graph.nodes]
    counts = [sum(is_kind(n) for n in nodes) for is_kind in kinds]
    assert counts == [3, 3, 6, 2]
    assert all(sum(is_kind(n) for is_kind in kinds) <= 1 for n in nodes)


def test_abandoned_transfers_leave_nothing_though_the_peer_lives(links):
    def start(rank: int) -> int:
        if rank == 0:  # the first arrives; the others have no other end
            ops.recv([2], torch.float32, CPU, 1, 0, "data1to0")
            ops.recv([2], torch.float32, CPU, 1, 1, "data1to0")
            ops.send(torch.zeros(10_000_000), 1, 2, "data0to1")
        else:
            ops.wait(ops.send(torch.ones(2), 0, 0, "data1to0"))
        return ops.unwaited()

    with pair({}, links) as ranks:
        assert ranks.on_both(start) == (3, 0)
        ranks.start(0, ops.abandon).result(5)
        assert ranks.start(0, ops.unwaited).result(5) == 0


def test_abandoning_ends_the_peers_wait_too(links):
    def wait_in_vain(rank: int) -> None:
        ops.wait(ops.recv([2], torch.float32, CPU, 0, 1, "data0to1"))

    with pair({}, links) as ranks:
        waiting = ranks.start(1, wait_in_vain, 1)
        ranks.start(0, ops.abandon).result(60)
        with pytest.raises(RuntimeError):
            waiting.result(5)
