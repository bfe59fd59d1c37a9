"""Each rule of verify, broken once in a program that was good."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import fx

from hybridiff_compile import ops
from hybridiff_compile.errors import VerifyError
from hybridiff_compile.ir import (
    Phase,
    RankContract,
    StepProgram,
    clone,
    output_node,
    returned_values,
)
from hybridiff_compile.passes import build_programs
from hybridiff_compile.passes.verify import verify
from tests import toy


def copied(program: StepProgram) -> StepProgram:
    """A program whose graphs a test may break; values are copied so that they may be changed."""
    graphs = tuple(clone(module) for module in program.graphs)
    for module in graphs:
        for node in module.graph.nodes:
            node.meta = dict(node.meta)
    return replace(program, graphs=graphs)


@pytest.fixture
def split() -> StepProgram:
    return copied(toy.split())


@pytest.fixture
def linked() -> StepProgram:
    return copied(toy.linked())


@pytest.fixture
def guarded() -> StepProgram:
    return copied(toy.guarded())


@pytest.fixture
def pipelined() -> StepProgram:
    return copied(build_programs(toy.captured().program, "paper")[Phase.PIPELINED])


def node(program: StepProgram, rank: int, name: str) -> fx.Node:
    return next(n for n in program.graphs[rank].graph.nodes if n.name == name)


def move(moved: fx.Node, before: fx.Node) -> None:
    before.prepend(moved)


def set_arg(changed: fx.Node, index: int, value: object) -> None:
    changed.update_arg(index, value)  # pyright: ignore[reportArgumentType]


def forget_result(program: StepProgram, rank: int, name: str) -> None:
    graph = program.graphs[rank].graph
    returned = returned_values(graph)
    del returned[name]
    output_node(graph).args = (returned,)


def test_good_programs_pass(split, linked, guarded, pipelined):
    for program in (toy.captured().program, split, linked, guarded, pipelined, toy.skewed()):
        verify(program)


# V1: each graph is sound.


def test_v1_node_that_is_used_before_it_is_made(split):
    move(node(split, 0, "cat"), before=node(split, 0, "eps_u"))
    with pytest.raises(VerifyError, match=r"V1, rank 0, node \?: FX lint: .*cat"):
        verify(split)


def test_v1_node_without_a_value(split):
    del node(split, 1, "eps_c").meta["val"]
    with pytest.raises(VerifyError, match=r"V1, rank 1, node eps_c: it has no value in meta"):
        verify(split)


def test_v1_placeholders_against_the_contract(split):
    first, second = split.contracts
    swapped = replace(first, inputs=(*first.inputs[1:], first.inputs[0]))
    with pytest.raises(VerifyError, match=r"V1, rank 0, .*the contract's placeholders are"):
        verify(replace(split, contracts=(swapped, second)))


def test_v1_returned_values_against_the_contract(split):
    first, second = split.contracts
    promised = replace(first, new_state=("cut",))
    with pytest.raises(VerifyError, match=r"V1, rank 0, .*prediction.*the contract returns .*cut"):
        verify(replace(split, contracts=(promised, second)))


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


# V4: no parameter is lost.


def test_v4_parameter_that_no_rank_holds(split):
    more = replace(split, parameters=split.parameters | {"lora.weight"})
    with pytest.raises(VerifyError, match=r"V4: no rank holds \['lora.weight'\] \(1 parameters\)"):
        verify(more)


def test_v4_stage_that_was_left_out(pipelined):
    pipelined.graphs[1].delete_submodule("stage1")
    pipelined.graphs[1].add_submodule("stage1", torch.nn.Identity())
    with pytest.raises(VerifyError, match=r"V4: no rank holds \['conv_out.bias'.*\(4 parameters\)"):
        verify(pipelined)


# V5: no received value is used unchecked.


def without_guard(program: StepProgram, rank: int) -> None:
    """Take a rank's guard away, leaving the stamps' transfer in place."""
    name = f"guard{1 - rank}"
    forget_result(program, rank, name)
    program.graphs[rank].graph.erase_node(node(program, rank, name))


def test_v5_guard_that_is_missing(guarded):
    without_guard(guarded, 1)
    with pytest.raises(VerifyError, match=r"V5, rank 1, .*guards check ranks \[\], not every peer"):
        verify(guarded)


def test_v5_guard_that_checks_the_wrong_rank(guarded):
    set_arg(node(guarded, 0, "guard1"), 3, 0)
    with pytest.raises(VerifyError, match=r"V5, rank 0, .*guards check ranks \[0\]"):
        verify(guarded)


def test_v5_guard_that_compares_a_stamp_with_itself(guarded):
    set_arg(node(guarded, 0, "guard1"), 1, node(guarded, 0, "stamp"))
    with pytest.raises(
        VerifyError, match=r"V5, rank 0, node guard1: it must read the input `stamp`"
    ):
        verify(guarded)


def test_v5_guard_that_reads_another_input_than_the_stamp(guarded):
    set_arg(node(guarded, 0, "guard1"), 0, node(guarded, 0, "timestep"))
    with pytest.raises(
        VerifyError, match=r"V5, rank 0, node guard1: it must read the input `stamp`"
    ):
        verify(guarded)


def test_v5_stamp_of_another_kind(guarded):
    for rank in range(2):
        for name in ("stamp", f"recv_stamp{1 - rank}", f"wait_stamp{1 - rank}"):
            node(guarded, rank, name).meta["val"] = torch.empty(2, dtype=torch.int32)
    with pytest.raises(VerifyError, match=r"V5, rank 0, node guard1: stamps are int64\[2\]"):
        verify(guarded)


def test_v5_received_value_that_is_used_before_the_guard(guarded):
    move(node(guarded, 0, "wait_eps_c"), before=node(guarded, 0, "wait_stamp1"))
    with pytest.raises(
        VerifyError, match=r"V5, rank 0, node wait_eps_c: a received value is used before the guard"
    ):
        verify(guarded)


def test_contract_with_a_name_for_two_values_is_refused():
    with pytest.raises(ValueError, match=r"placeholder names must be unique, got \('a', 'a'\)"):
        RankContract(inputs=("a",), state=("a",))
    with pytest.raises(ValueError, match="returned value names must be unique"):
        RankContract(inputs=(), results=("a",), exports=(("a", 1),))


def test_v5_value_sent_before_the_guard(pipelined):
    first = pipelined.graphs[0].graph
    move(node(pipelined, 0, "send_cut_next"), before=node(pipelined, 0, "wait_stamp1"))
    first.lint()
    with pytest.raises(
        VerifyError, match=r"V5, rank 0, node send_cut_next: a value is sent before"
    ):
        verify(pipelined)
