"""Rules of verify on what the ranks exchange, each broken once in a program that was good."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hybridiff_compile import ops
from hybridiff_compile.errors import VerifyError
from hybridiff_compile.ir import StepProgram, output_node, returned_values
from hybridiff_compile.passes.verify import verify
from tests.passes.edit import forget_result, move, node, set_arg

# V2: what one rank reads, another sends.


def test_v2_import_that_no_rank_makes(split):
    first, _ = split.contracts
    forget_result(split, 1, "eps_c")
    silent = replace(split, contracts=(first, replace(split.contracts[1], exports=())))
    with pytest.raises(VerifyError, match=r"V2, rank 0, node eps_c: .* 1 to rank 0 is made by no"):
        verify(silent)


def test_v2_export_that_no_rank_reads(split):
    _, second = split.contracts
    node(split, 0, "eps_c").replace_all_uses_with(node(split, 0, "eps_u"))
    split.graphs[0].graph.erase_node(node(split, 0, "eps_c"))
    deaf = replace(split, contracts=(replace(split.contracts[0], imports=()), second))
    with pytest.raises(VerifyError, match=r"V2, rank 0, node eps_c: .* 1 to rank 0 is read by no"):
        verify(deaf)


def test_v2_import_of_another_shape_than_is_made(split):
    read = node(split, 0, "eps_c")
    read.meta["val"] = read.meta["val"].new_empty(1, 4, 8, 9)
    with pytest.raises(
        VerifyError, match=r"rank 0, node eps_c: sent as f32\[1,4,8,8\], received as f32\[1,4,8,9\]"
    ):
        verify(split)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.empty(2, 4, 8, 8), r"f32\[2,4,8,8\]"),
        (torch.empty(1, 4, 8, 8, dtype=torch.float16), r"f16\[1,4,8,8\]"),
    ],
)
def test_v2_receive_of_another_shape_or_dtype_than_is_sent(linked, value, text):
    node(linked, 0, "recv_eps_c").meta["val"] = value
    with pytest.raises(
        VerifyError, match=rf"V2, rank 0, node recv_eps_c: sent as f32.*, received as {text}"
    ):
        verify(linked)


def test_v2_tag_used_twice(pipelined):
    graph = pipelined.graphs[0].graph
    sent = node(pipelined, 0, "send_cut_next")
    with graph.inserting_after(sent):
        again = graph.node_copy(sent)
    with graph.inserting_before(output_node(graph)):
        token = graph.call_function(ops.WAIT, (again,))
    token.meta = dict(again.meta)
    output_node(graph).args = ({**returned_values(graph), "sent_again": token},)
    with pytest.raises(
        VerifyError, match=r"V2, rank 0, .*link \(0, 1, 0, 'data0to1'\) is used twi"
    ):
        verify(pipelined)


def test_v2_send_without_a_receive(linked):
    read = node(linked, 0, "wait_eps_c")
    read.replace_all_uses_with(node(linked, 0, "eps_u"))
    linked.graphs[0].graph.erase_node(read)
    linked.graphs[0].graph.erase_node(node(linked, 0, "recv_eps_c"))
    with pytest.raises(VerifyError, match=r"V2, rank 1, node send_eps_c: link .* has no receive"):
        verify(linked)


def test_v2_receive_without_a_send(linked):
    graph = linked.graphs[1].graph
    forget_result(linked, 1, "sent_eps_c")
    for name in ("sent_eps_c", "send_eps_c"):
        graph.erase_node(node(linked, 1, name))
    with pytest.raises(VerifyError, match=r"V2, rank 0, node recv_eps_c: link .* has no send"):
        verify(linked)


@pytest.mark.parametrize(("index", "value"), [(-2, 9), (-1, "data0to1"), (-3, 1)])
def test_v2_ends_that_differ_in_tag_group_or_rank(linked, index, value):
    sent = node(linked, 1, "send_eps_c")
    set_arg(sent, len(sent.args) + index, value)
    with pytest.raises(VerifyError, match=r"V2, rank \d, .* has no (send|receive)"):
        verify(linked)


def test_v2_ranks_that_wait_for_each_other_before_they_send(pipelined):
    move(node(pipelined, 0, "send_cut_next"), before=node(pipelined, 0, "cat"))
    for rank, read, sent, computed in (
        (0, "wait_eps_c", "send_cut_next", "features_u"),
        (1, "wait_cut_next", "send_eps_c", "stage1_c"),
    ):
        first = node(pipelined, rank, computed)
        move(node(pipelined, rank, read), before=first)
        names = [n.name for n in pipelined.graphs[rank].graph.nodes]
        assert names.index(read) < names.index(sent)
    with pytest.raises(
        VerifyError, match=r"wait for each other \(rank 0 at wait_eps_c; rank 1 at wait_cut_next\)"
    ):
        verify(pipelined)


def test_v2_rank_that_waits_for_its_own_send_before_the_peer_posts(pipelined):
    # Rank 0 completes its send first, rank 1 posts its receive only after rank 0's next message.
    move(node(pipelined, 0, "sent_cut_next"), before=node(pipelined, 0, "wait_eps_c"))
    verify(pipelined)
    move(node(pipelined, 0, "send_stamp1"), before=node(pipelined, 0, "wait_stamp1"))
    move(node(pipelined, 1, "sent_eps_c"), before=node(pipelined, 1, "wait_cut_next"))
    move(node(pipelined, 1, "recv_cut_next"), before=node(pipelined, 1, "wait_cut_next"))
    move(node(pipelined, 0, "recv_eps_c"), before=node(pipelined, 0, "wait_eps_c"))
    with pytest.raises(VerifyError, match=r"rank 0 at sent_cut_next; rank 1 at sent_eps_c"):
        verify(pipelined)


# V3: one wait between a transfer and its first use.


def test_v3_receive_without_a_wait(linked):
    graph = linked.graphs[0].graph
    read = node(linked, 0, "wait_eps_c")
    read.replace_all_uses_with(node(linked, 0, "recv_eps_c"))
    graph.erase_node(read)
    with pytest.raises(VerifyError, match=r"V3, rank 0, node recv_eps_c: it has 0 waits"):
        verify(linked)


def test_v3_receive_with_two_waits(linked):
    graph = linked.graphs[0].graph
    with graph.inserting_before(node(linked, 0, "cat")):
        again = graph.node_copy(node(linked, 0, "wait_eps_c"), lambda n: n)
    set_arg(node(linked, 0, "cat"), 0, [node(linked, 0, "wait_eps_c"), again])
    with pytest.raises(VerifyError, match=r"V3, rank 0, node recv_eps_c: it has 2 waits"):
        verify(linked)


def test_v3_value_used_before_its_wait(linked):
    cat = node(linked, 0, "cat")
    set_arg(cat, 0, [node(linked, 0, "wait_eps_c"), node(linked, 0, "recv_eps_c")])
    with pytest.raises(VerifyError, match=r"V3, rank 0, node cat: it reads recv_eps_c without wai"):
        verify(linked)


def test_v3_token_that_is_not_returned(linked):
    forget_result(linked, 1, "sent_eps_c")
    with pytest.raises(
        VerifyError, match=r"V3, rank 1, node sent_eps_c: the token is not returned"
    ):
        verify(linked)


# V6: NCCL matches the transfers of a group by their order.


def add_link(program: StepProgram, tag: int) -> None:
    """Send rank 0's cut a second time, right after the first; rank 1 receives it last."""
    sending, receiving = (module.graph for module in program.graphs)
    sent, received = node(program, 0, "send_cut_next"), node(program, 1, "recv_cut_next")
    with sending.inserting_after(sent):
        again = sending.node_copy(sent)
    set_arg(again, len(again.args) - 2, tag)
    with sending.inserting_before(output_node(sending)):
        token = sending.call_function(ops.WAIT, (again,))
    output_node(sending).args = ({**returned_values(sending), "sent_again": token},)
    with receiving.inserting_after(received):
        posted = receiving.node_copy(received)
    set_arg(posted, len(posted.args) - 2, tag)
    with receiving.inserting_before(output_node(receiving)):
        arrived = receiving.call_function(ops.WAIT, (posted,), name="wait_again")
    token.meta, arrived.meta = dict(again.meta), dict(posted.meta)


def test_v6_links_that_start_in_another_order_at_their_other_end(pipelined):
    add_link(pipelined, tag=9)
    verify(pipelined)
    first = node(pipelined, 1, "recv_cut_next")
    move(first.next, before=first)
    with pytest.raises(
        VerifyError,
        match=r"V6, rank 1, node recv_\w+: on data0to1, rank 0 sends the tags \[0, 9\], "
        r"rank 1 receives \[9, 0\]",
    ):
        verify(pipelined)


def test_v6_is_about_one_group_links_of_others_may_start_in_any_order(pipelined):
    stamp, cut = node(pipelined, 1, "recv_stamp0"), node(pipelined, 1, "recv_cut_next")
    order = list(pipelined.graphs[1].graph.nodes)
    first, second = sorted((stamp, cut), key=order.index)
    move(second, before=first)
    verify(pipelined)
