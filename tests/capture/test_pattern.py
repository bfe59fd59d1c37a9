"""Which calls make a step, and what of the next one is known at its first call."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hybridiff_compile.capture.call import DenoiserCall
from hybridiff_compile.capture.pattern import StepCalls

TEXT = {name: torch.full((1, 3), value) for name, value in (("c", 1.0), ("u", 2.0), ("s", 3.0))}


def call(x: torch.Tensor, t: Any, text: torch.Tensor, **more: Any) -> DenoiserCall:
    return DenoiserCall.of(("sample", "timestep", "text"), (x, t, text), more)


def picture(number: float) -> torch.Tensor:
    return torch.full((1, 4), number)


def step(calls: StepCalls, number: float, texts: str = "cu") -> None:
    """A step as a pipeline makes it, of which nothing is awaited."""
    x, t = picture(number), torch.tensor(number)
    for text in texts:
        now = call(x, t, TEXT[text])
        assert not calls.awaits(now)
        calls.note(now)
    calls.end_step()


def begun(texts: str = "cu") -> tuple[StepCalls, torch.Tensor, torch.Tensor]:
    """After one step, the first call of the next one was answered, with its name and the others."""
    calls = StepCalls()
    step(calls, 0.0, texts)
    x, t = picture(1.0), torch.tensor(1.0)
    first = call(x, t, TEXT[texts[0]])
    assert not calls.awaits(first)
    calls.note(first)
    assumed = calls.assumed(first)
    assert assumed is not None
    calls.answered(assumed, list(texts))
    return calls, x, t


def test_a_pipeline_of_one_call_a_step_is_foreseen_in_nothing():
    calls = StepCalls()
    for number in range(3):
        step(calls, number, "c")
        assert (calls.is_first, calls.assumed(calls.under_way[0])) == (True, None)
    assert len(calls.last) == 1


def test_the_first_step_is_not_foreseen():
    calls = StepCalls()
    first = call(picture(0), 0, TEXT["c"])
    calls.note(first)
    assert calls.assumed(first) is None


@pytest.mark.parametrize("texts", ["cu", "cus", "csc"])
def test_all_calls_are_known_at_the_first_one_of_the_second_step(texts):
    calls = StepCalls()
    step(calls, 0.0, texts)
    x, t = picture(1.0), torch.tensor(1.0)
    first = call(x, t, TEXT[texts[0]])
    calls.note(first)
    assumed = calls.assumed(first)
    assert assumed is not None
    assert len(assumed.calls) == len(texts)
    for text, foreseen in zip(texts, assumed.calls, strict=True):
        assert foreseen.leaves[0] is x
        assert foreseen.leaves[1] is t
        assert foreseen.leaves[2] is TEXT[text]


def test_a_call_that_is_as_assumed_gets_its_answer():
    calls, x, t = begun("cus")
    for text in "us":
        assert calls.awaits(call(x, t, TEXT[text]))
        assert calls.answer() == text
    assert not calls.surprise
    assert len(calls.under_way) == 3


def test_the_same_values_in_other_tensors_are_as_assumed():
    calls, x, t = begun()
    assert calls.awaits(call(x.clone(), t / 1, TEXT["u"].clone()))


@pytest.mark.parametrize("kept", [True, False])
def test_steps_go_on_to_be_foreseen(kept):
    calls, x, t = begun()
    assert calls.awaits(call(x, t, TEXT["u"] if kept else TEXT["u"].clone()))
    calls.answer()
    calls.end_step()
    first = call(picture(2.0), torch.tensor(2.0), TEXT["c"])
    calls.note(first)
    assumed = calls.assumed(first)
    assert assumed is not None
    assert [one.leaves[0].tolist() for one in assumed.calls] == [[[2.0] * 4]] * 2


OTHERS = {
    "text": lambda x, t: call(x, t, TEXT["s"]),
    "timestep": lambda x, t: call(x, t + 1, TEXT["u"]),
    "more": lambda x, t: call(x, t, TEXT["u"], more=1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_call_that_is_another_one_is_not_answered(name):
    calls, x, t = begun()
    other = OTHERS[name](x, t)
    assert not calls.awaits(other)
    assert calls.surprise == name
    calls.note(other)
    assert not calls.is_first
    assert not calls.awaits(call(x, t, TEXT["u"]))  # what was assumed is not used later


@pytest.mark.parametrize("inference", [False, True])
def test_what_was_written_in_its_place_is_another_one(inference):
    with torch.inference_mode(inference):
        text = {name: value.clone() for name, value in TEXT.items()}
        calls = StepCalls()
        for number in (0.0, 1.0):
            x, t = picture(number), torch.tensor(number)
            calls.note(call(x, t, text["c"]))
            if not number:
                calls.note(call(x, t, text["u"]))
                calls.end_step()
        assumed = calls.assumed(calls.under_way[0])
        assert assumed is not None
        calls.answered(assumed, "cu")
        text["u"].add_(1)
        assert not calls.awaits(call(x, t, text["u"]))
    assert calls.surprise == "text"


def test_a_call_that_does_not_come_is_no_surprise():
    calls, *_ = begun()
    calls.end_step()
    first = call(picture(2.0), torch.tensor(2.0), TEXT["c"])
    assert not calls.awaits(first)
    assert not calls.surprise
    calls.note(first)
    assert calls.assumed(first) is None  # the last step was one call
    assert len(calls.last) == 1


def test_another_picture_begins_a_step_though_no_scheduler_was_seen():
    calls, *_ = begun()
    first = call(picture(2.0), torch.tensor(2.0), TEXT["c"])
    assert not calls.awaits(first)
    assert not calls.surprise
    calls.note(first)
    assert calls.is_first


def test_guidance_that_is_switched_on_is_foreseen_one_step_later():
    calls = StepCalls()
    step(calls, 0.0, "c")
    step(calls, 1.0, "cu")
    first = call(picture(2.0), torch.tensor(2.0), TEXT["c"])
    calls.note(first)
    assumed = calls.assumed(first)
    assert assumed is not None
    assert len(assumed.calls) == 2


def test_a_first_call_of_another_shape_is_not_foreseen():
    calls = StepCalls()
    step(calls, 0.0)
    first = call(torch.ones(2, 4), torch.tensor(1.0), TEXT["c"])
    calls.note(first)
    assert calls.assumed(first) is None


def test_calls_that_surprise_again_are_answered_one_by_one():
    calls = StepCalls()
    step(calls, 0.0)
    for number in (1.0, 2.0):
        x, t = picture(number), torch.tensor(number)
        first, other = call(x, t, TEXT["c"]), call(x, t, torch.full((1, 3), 10 + number))
        calls.note(first)
        assumed = calls.assumed(first)
        assert assumed is not None
        calls.answered(assumed, "cu")
        assert not calls.awaits(other)
        calls.note(other)
        calls.end_step()
    assert calls.are_apart
    calls.note(first := call(picture(3.0), torch.tensor(3.0), TEXT["c"]))
    assert calls.assumed(first) is None


def test_calls_of_several_pictures_within_a_step_are_seen_once_it_is_over():
    calls = StepCalls()
    for number in (0.0, 0.5):
        calls.note(call(picture(number), torch.tensor(number), TEXT["c"]))
    assert not calls.have_moved  # a scheduler may tell of nothing
    calls.end_step()
    assert calls.have_moved
    step(calls, 1.0, "c")
    assert not calls.have_moved


def test_another_picture_before_the_scheduler_was_told_is_seen_at_once():
    calls = StepCalls()
    step(calls, 0.0, "c")
    assert not calls.have_moved
    for number in (1.0, 1.5):
        calls.note(call(picture(number), torch.tensor(number), TEXT["c"]))
    assert calls.have_moved


def test_a_lone_call_is_known_to_be_one_from_the_scheduler_or_from_many_steps():
    calls = StepCalls()
    calls.note(call(picture(0.0), torch.tensor(0.0), TEXT["c"]))
    assert not calls.are_lone
    calls.end_step()
    assert calls.are_lone
    untold = StepCalls()
    for number in range(5):
        assert not untold.are_lone
        untold.note(call(picture(number), torch.tensor(float(number)), TEXT["c"]))
    assert untold.are_lone


def test_a_number_that_is_another_one_at_each_step_is_named():
    calls = StepCalls()
    for number in range(5):
        assert calls.strange == ("" if number < 4 else "timestep")
        x = picture(number)
        for text in "cu":
            now = call(x, number / 10, TEXT[text])
            calls.note(now)
            assert calls.assumed(now) is None
        calls.end_step()
    assert calls.strange == "timestep"


def test_a_step_with_a_call_of_another_denoiser_is_not_known():
    calls = StepCalls()
    calls.note(call(picture(0.0), torch.tensor(0.0), TEXT["c"]))
    assert len(calls.known) == 1
    calls.note_other()
    assert calls.known == ()
    calls.end_step()
    step(calls, 1.0, "c")
    assert calls.last_known == ()
    step(calls, 2.0, "c")
    assert len(calls.last_known) == 1
