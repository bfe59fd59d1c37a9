from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

from hybridiff_compile.capture.branches import Branches
from hybridiff_compile.capture.call import DenoiserCall
from hybridiff_compile.capture.prediction import Form
from hybridiff_compile.errors import CaptureError
from tests import toy

leaves = pytree.tree_leaves


def of(*args: object, **kwargs: object) -> DenoiserCall:
    return DenoiserCall.of(("sample", "timestep", "text"), args, kwargs)


def doubled(*shape: int) -> torch.Tensor:
    half = torch.randn(*shape)
    return torch.cat([half, half])


def test_positional_arguments_are_named_by_their_parameters():
    call = of(doubled(1, 2), torch.tensor(3.0), text=doubled(1, 4), return_dict=False)
    assert call.names == ("sample", "timestep", "text", "return_dict")
    assert list(call.tensors()) == ["sample", "timestep", "text"]


def test_nested_arguments_are_named_by_their_path():
    added = {"text_embeds": torch.ones(2, 4), "time_ids": torch.ones(2, 6)}
    residuals = (torch.ones(2, 1), [torch.ones(2, 2)])
    call = of(doubled(1, 2), added_cond_kwargs=added, residuals=residuals, mask=None)
    assert list(call.tensors())[1:] == [
        "added_cond_kwargs_text_embeds",
        "added_cond_kwargs_time_ids",
        "residuals_0",
        "residuals_1_0",
    ]
    assert call.names == (*call.tensors(), "mask")


def test_arguments_come_back_as_they_were_given():
    sample, text = doubled(1, 2), torch.ones(2, 3)
    call = of(sample, 5, added={"a": (text, None)}, return_dict=False)
    positional, keyword = call.arguments
    assert list(positional) == ["sample", "timestep"]
    assert positional["sample"] is sample
    assert positional["timestep"] == 5
    assert keyword["added"]["a"][0] is text
    assert keyword["added"]["a"][1] is None
    assert keyword["return_dict"] is False


def test_branch_slices_every_tensor_of_the_doubled_batch():
    sample, ids = doubled(2, 3), torch.arange(4)
    call = of(sample, torch.tensor(7.0), added={"ids": (ids, torch.ones(3, 5))}, scale=0.5)
    for b, expected in enumerate(([0, 1], [2, 3])):
        positional, keyword = call.branch(b).arguments
        assert torch.equal(positional["sample"], sample[:2])
        assert positional["timestep"].shape == ()
        assert keyword["added"]["ids"][0].tolist() == expected
        assert keyword["added"]["ids"][1].shape == (3, 5)  # its dim 0 is not the batch
        assert keyword["scale"] == 0.5


def test_batch_of_one_picture_is_sliced_into_single_rows():
    call = of(doubled(1, 3), torch.tensor([1.0, 2.0]))
    assert call.branch(1).tensors()["timestep"].tolist() == [2.0]


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (doubled(1, 4), True),
        (doubled(2, 4), True),
        (torch.randn(2, 4), False),
        (torch.randn(1, 4), False),
        (doubled(3, 4)[:3], False),
        (torch.tensor(1.0), False),
    ],
    ids=["one picture", "two pictures", "unequal halves", "batch of one", "odd batch", "0-dim"],
)
def test_doubled_when_both_halves_of_the_noisy_picture_are_bit_equal(sample, expected):
    assert of(sample, torch.tensor(1.0)).is_doubled() is expected


def test_inputs_are_the_whole_batch_where_no_branch_has_its_own():
    call = toy.call_of()
    found = Branches.of_batch(call, {}).inputs()
    assert list(found) == list(call.tensors())
    assert all(found[name] is value for name, value in call.tensors().items())


def test_tensors_with_overlaps_or_gaps_are_made_dense_and_others_left_alone():
    expanded, gaps = torch.tensor(3.0).expand(4), torch.ones(2, 8)[:, ::2]
    dense = doubled(2, 4, 3, 3).to(memory_format=torch.channels_last)
    call = of(dense, expanded, text=gaps)
    found = call.tensors()
    assert found["sample"] is dense
    assert (found["timestep"].stride(), found["text"].stride()) == ((1,), (4, 1))
    assert torch.equal(found["timestep"], expanded)
    assert torch.equal(found["text"], gaps)


def test_call_without_tensors_is_not_doubled():
    assert of(1, text="a").is_doubled() is False


def test_one_bit_makes_the_halves_unequal():
    sample = doubled(1, 4)
    sample[1, 0] = torch.nextafter(sample[1, 0], torch.tensor(9.0))
    assert not of(sample).is_doubled()


def test_signature_changes_with_shape_dtype_constant_and_structure_but_not_with_values():
    base = toy.call_of().signature()
    assert toy.call_of(seed=9).signature() == base
    assert hash(base) == hash(toy.call_of(seed=9).signature())
    assert toy.call_of(batch=2).signature() != base
    assert toy.call_of(return_dict=True).signature() != base
    assert toy.call_of(added=None).signature() != base
    half = toy.call_of(encoder_hidden_states=torch.ones(2, 3, 6).half())
    assert half.signature() != base


def test_signature_tells_long_arrays_apart_and_shapes_do_not():
    one, other = np.zeros(5000), np.zeros(5000)
    other[2500] = 1.0
    sample = torch.ones(2, 4)
    calls = [of(sample, text=array) for array in (one, other, one.copy())]
    signatures = [call.signature() for call in calls]
    assert signatures[0] != signatures[1]
    assert signatures[0] == signatures[2]
    assert calls[0].shapes() == calls[1].shapes()
    assert of(sample, 1.0).shapes() == of(sample, 2.0).shapes() != of(sample, 2).shapes()


@pytest.mark.parametrize("value", [object(), len, of, {1, 2}], ids=lambda v: type(v).__name__)
def test_arguments_whose_text_does_not_tell_them_apart_are_opaque(value):
    reason = of(torch.ones(2, 4), text={"inside": [value]}).opaque()
    assert f"its argument text_inside_0 is a {type(value).__name__}" in reason


def test_numbers_texts_and_tensors_are_not_opaque():
    values = [None, True, 1, 2.5, 1j, "a", b"a", torch.float16, torch.device("cpu"), np.ones(3)]
    values += [np.float32(1), slice(1, 2), torch.ones(1)]
    assert of(torch.ones(2, 4), text=values).opaque() == ""


def test_dimension_of_rows_goes_by_the_noisy_picture():
    values = {"table": torch.ones(7, 4, 2), "ids": torch.ones(8, 3), "time": torch.tensor(1.0)}
    call = of(torch.ones(4, 2), text=torch.ones(4, 5), added=values)
    assert call.rows == 4
    assert call.rows_by_shape() == {"sample": 0, "text": 0, "added_table": 1}


def test_halves_of_any_dimension_are_dense():
    table = torch.arange(24.0).view(3, 4, 2)
    halves = Branches.of_batch(of(torch.ones(4, 2), text=table), {"sample": 0, "text": 1}).inputs()
    assert list(halves) == ["sample_u", "text_u", "sample_c", "text_c"]
    assert torch.equal(halves["text_c"], table[:, 2:])
    assert halves["text_u"].is_contiguous()


def test_halves_are_not_taken_to_be_equal():
    inputs = Branches.of_batch(of(torch.tensor([[1.0], [2.0]])), {"sample": 0}).inputs()
    assert (inputs["sample_u"].item(), inputs["sample_c"].item()) == (1, 2)


@dataclass
class Output:
    sample: torch.Tensor


def test_one_tensor_of_an_answer_is_the_prediction_itself():
    value = torch.ones(2)
    for answer in (value, (value,), {"sample": value}, [value], (value, None)):
        form = Form.of(answer, "Toy")
        assert form.pack(answer) is value
        assert type(form.unpack(value)) is type(answer)
        assert all(a is b for a, b in zip(leaves(form.unpack(value)), leaves(answer), strict=True))


def test_several_tensors_of_one_batch_lie_side_by_side_and_come_back():
    picture, sound = torch.randn(4, 2, 3), torch.randn(4, 5)
    form = Form.of((picture, {"sound": sound}), "Toy")
    packed = form.pack((picture, {"sound": sound}))
    assert packed.shape == (4, 11)
    halves = torch.cat([form.pack((picture[:2], sound[:2])), form.pack((picture[2:], sound[2:]))])
    assert torch.equal(halves, packed)
    one, two = form.unpack(packed)
    assert torch.equal(one, picture)
    assert torch.equal(two["sound"], sound)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ((), "Toy returns 0 tensors among 0 values"),
        ((torch.ones(1), "log"), "Toy returns 1 tensors among 2 values"),
        (Output(torch.ones(1)), "Toy returns 0 tensors among 1 values"),
        ((torch.ones(2), torch.ones(3)), r"float32\[2\], .*float32\[3\].* differ in batch"),
        ((torch.ones(2), torch.ones(2).half()), "differ in batch, dtype"),
    ],
)
def test_other_outputs_are_refused(output, message):
    with pytest.raises(CaptureError, match=message):
        Form.of(output, "Toy")
