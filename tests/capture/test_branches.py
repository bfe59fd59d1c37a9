"""Which inputs of a step's branches are one."""

from __future__ import annotations

import torch

from hybridiff_compile.capture.branches import Branches
from hybridiff_compile.capture.call import DenoiserCall

X, T = torch.zeros(1, 4), torch.tensor(1.0)
TEXT = [torch.full((1, 3), float(i)) for i in range(3)]


def of(x: torch.Tensor, text: torch.Tensor, **more: object) -> DenoiserCall:
    return DenoiserCall.of(("sample", "timestep", "text"), (x, T, text), more)


def test_what_all_are_given_is_one_input():
    step = Branches((of(X, TEXT[0]), of(X, TEXT[1])))
    assert list(step.inputs()) == ["sample", "timestep", "text_u", "text_c"]
    assert step.inputs()["text_c"] is TEXT[1]


def test_equal_values_are_no_one_input():
    step = Branches((of(X, TEXT[0]), of(X.clone(), TEXT[0].clone())))
    assert list(step.inputs()) == ["sample_u", "timestep", "text_u", "sample_c", "text_c"]


def test_what_some_are_given_is_named_after_the_first_of_them():
    step = Branches((of(X, TEXT[0]), of(X, TEXT[1]), of(X, TEXT[0])))
    assert list(step.inputs()) == ["sample", "timestep", "text_0", "text_1"]
    assert [names["text"] for names in step.inputs_of] == ["text_0", "text_1", "text_0"]


def test_what_one_alone_has_is_its_own():
    step = Branches((of(X, TEXT[0]), of(X, TEXT[1], mask=TEXT[2])))
    assert list(step.inputs()) == ["sample", "timestep", "text_u", "text_c", "mask_c"]


def test_parts_of_a_batch_share_what_has_no_rows():
    call = of(torch.zeros(3, 4), torch.zeros(3, 3))
    step = Branches.of_batch(call, {"sample": 0, "text": 0})
    assert step.names == ("0", "1", "2")
    assert list(step.inputs()) == [
        *("sample_0", "timestep", "text_0", "sample_1", "text_1", "sample_2", "text_2")
    ]


def test_the_signature_tells_what_is_shared():
    one = Branches((of(X, TEXT[0]), of(X, TEXT[1])))
    two = Branches((of(X, TEXT[0]), of(X.clone(), TEXT[1])))
    assert one.signature() != two.signature()
    assert one.signature() == Branches((of(X, TEXT[1]), of(X, TEXT[2]))).signature()
