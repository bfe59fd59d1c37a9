"""Rules of verify on what each rank does by itself, each broken once in a good program."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hybridiff_compile.errors import VerifyError
from hybridiff_compile.ir import RankContract, StepProgram
from hybridiff_compile.passes.verify import verify
from tests import toy
from tests.passes.edit import forget_result, move, node, set_arg


def test_good_programs_pass(split, linked, guarded, pipelined):
    for program in (toy.captured().program, split, linked, guarded, pipelined, toy.skewed()):
        verify(program)


# V1: each graph is sound.


def test_v1_node_that_is_used_before_it_is_made(split):
    move(node(split, 0, "cat"), before=node(split, 0, "eps_u"))
    with pytest.raises(VerifyError, match=r"V1, rank 0, node \?: FX lint: .*cat"):
        verify(split)


def test_v1_node_that_calls_what_cannot_be_called(split):
    node(split, 0, "cat").target = "torch.cat"
    with pytest.raises(VerifyError, match=r"V1, rank 0, node \?: FX lint: .*Callable is exp"):
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


def test_contract_with_a_name_for_two_values_is_refused():
    with pytest.raises(ValueError, match=r"placeholder names must be unique, got \('a', 'a'\)"):
        RankContract(inputs=("a",), state=("a",))
    with pytest.raises(ValueError, match="returned value names must be unique"):
        RankContract(inputs=(), results=("a",), exports=(("a", 1),))


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


def test_v5_value_sent_before_the_guard(pipelined):
    first = pipelined.graphs[0].graph
    move(node(pipelined, 0, "send_cut_next"), before=node(pipelined, 0, "wait_stamp1"))
    first.lint()
    with pytest.raises(
        VerifyError, match=r"V5, rank 0, node send_cut_next: a value is sent before"
    ):
        verify(pipelined)
