"""Inputs of step after step: which of them was held, and is another one now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hybridiff_compile import layout
from hybridiff_compile.runtime import inputs
from hybridiff_compile.runtime.forecast import READ_AFTER
from hybridiff_compile.runtime.inputs import Inputs

#: An input of each step; the same object counts.
Given = Callable[[int], torch.Tensor]


def value(number: float) -> torch.Tensor:
    return torch.full((2, 3), float(number))


def changes(given: Given, steps: int = 12, mode: Any = None) -> list[int]:
    """The steps that see a change of one input, beside a noisy picture and a time that move on."""
    run, found = Inputs(), []
    for i in range(steps):
        # The last step's objects are not kept here: nothing but `Inputs` keeps their memory.
        values = {"sample": value(i), "timestep": torch.tensor([float(i)] * 2), "text": given(i)}
        run.note(i, values)
        assert run.changed in ("", "text")
        found += [i] * bool(run.changed)
    return found


@pytest.fixture(params=["cpu", "late"])
def is_late(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """On a CPU, and as on a device whose values are not waited for."""
    if request.param == "late":
        monkeypatch.setattr(layout, "_is_here", lambda tensor: False)
    return request.param == "late"


@pytest.mark.usefixtures("is_late")
def test_another_object_in_place_of_one_that_was_held():
    one, two = value(1), value(2)
    assert changes(lambda i: one if i < 6 else two) == [6]
    assert changes(lambda i: one if i < 4 else two if i < 8 else one) == [4, 8]


@pytest.mark.usefixtures("is_late")
def test_one_object_that_is_written():
    held = value(1)
    assert changes(lambda i: held.mul_(2) if i == 6 else held) == [6]
    parts = value(1).repeat(2, 1)
    assert changes(lambda i: (parts.mul_(2) if i == 6 else parts)[:2]) == [6]  # a view of it


def test_a_new_tensor_at_each_step_is_compared_by_its_values(is_late: bool):
    at = 6 + READ_AFTER * is_late
    assert changes(lambda i: value(1 if i < 6 else 2)) == [at]
    assert changes(lambda i: value(1)) == []


def test_equal_values_in_place_of_an_object_are_no_change_where_they_can_be_looked_at():
    one, two = value(1), value(1)
    assert changes(lambda i: one if i < 6 else two) == []


def test_what_is_another_one_at_each_step_never_changes(is_late: bool):
    assert changes(value) == []
    buffer = value(0)
    assert changes(lambda i: buffer.fill_(i)) == []
    assert changes(lambda i: value(i // 2)) == []  # of a sampler of two calls a time


def test_what_begins_to_be_held_counts_from_then_on(is_late: bool):
    at = 9 + READ_AFTER * is_late
    assert changes(lambda i: value(i if i < 5 else 0)) == []
    assert changes(lambda i: value(i if i < 5 else 0 if i < 9 else 1)) == [at]


def test_what_begins_to_differ_is_one_change(is_late: bool):
    at = 6 + READ_AFTER * is_late
    assert changes(lambda i: value(max(i, 5))) == [at]


def test_the_last_step_that_told_of_a_change_is_known():
    run, seen = Inputs(), []
    for i in range(8):
        run.note(i, {"sample": value(i), "text": value(i // 4)})
        seen.append(run.begun)
    assert seen == [0] * 4 + [4] * 4


def test_the_noisy_picture_and_numbers_are_left_out():
    run = Inputs()
    for i in range(12):
        number = torch.tensor([float(i // 4)])
        run.note(i, {"sample": value(i // 4), "timestep": number, "scale": number[0]})
        assert not run.changed


@pytest.mark.usefixtures("is_late")
def test_inputs_of_another_shape_or_name():
    run, seen = Inputs(), []
    for i in range(8):
        run.note(i, {"sample": value(i), "text": value(1)[: 2 if i < 4 else 1]})
        seen.append(run.changed)
    assert seen == [""] * 4 + ["text"] + [""] * 3
    run.note(8, {"sample": value(8), "other": value(2)})
    run.note(9, {"sample": value(9)})
    run.note(10, {})
    assert not run.changed


def test_inference_tensors_are_compared_by_their_values():
    with torch.inference_mode():
        one, two = value(1), value(2)
        assert changes(lambda i: one if i < 6 else two) == [6]


def test_memory_that_was_taken_back_tells_nothing(monkeypatch: pytest.MonkeyPatch):
    """As of a ControlNet under CUDA graphs, whose next replay takes what the last one returned."""

    def is_kept(last: Any, tensor: torch.Tensor) -> bool:
        raise RuntimeError("accessing tensor output of CUDAGraphs that has been overwritten")

    monkeypatch.setattr(layout, "is_kept", is_kept)
    assert changes(lambda i: value(1 if i < 6 else 2)) == []


class _NoReading(TorchDispatchMode):
    """Within this no value of a tensor may be read: on a GPU that waits."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.name() not in ("aten::equal", "aten::_local_scalar_dense"), func
        return func(*args, **(kwargs or {}))


def test_no_value_is_read_in_the_step_that_it_was_computed_in(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layout, "_is_here", lambda tensor: False)
    read: list[int] = []
    own = inputs.Reading.tolist

    class Noting(inputs.Reading):
        def __init__(self, flags: torch.Tensor) -> None:
            super().__init__(flags)
            self.step = step

        def tolist(self) -> Any:
            assert step >= self.step + READ_AFTER
            read.append(self.step)
            return own(self)

    monkeypatch.setattr(inputs, "Reading", Noting)
    run, step = Inputs(), 0
    with _NoReading():
        for step in range(8):
            run.note(step, {"sample": value(step), "text": value(1), "mask": value(step)})
    assert read == [1, 2, 3, 4, 5]
