import pytest
import torch

from hybridiff_compile.layout import Layout, PackCut, UnpackCut


def round_trip(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    layout = Layout.of(tensors)
    return UnpackCut(layout)(PackCut(layout)(tensors))


TENSORS = {
    "float32": torch.randn(2, 3, 5),
    "float16": torch.randn(3, 3).half(),
    "bfloat16": torch.randn(7).bfloat16(),
    "int64": torch.arange(5),
    "bool": torch.tensor([True, False, True]),
    "float64": torch.randn(3, dtype=torch.float64),
    "0-dim": torch.tensor(1.5),
    "one element, stride 0": torch.tensor(2.5).expand(1),
    "empty": torch.empty(0, 3),
    "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "transposed": torch.randn(4, 6).t(),
    "permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
    "expanded": torch.randn(1, 3).expand(4, 3),
    "sliced": torch.randn(4, 8)[:, ::2],
    "chunk": torch.randn(2, 8, 3).chunk(2, dim=1)[1],
    "one row": torch.randn(6, 4)[2:3].t(),
    "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
}
DENSE = ("float32", "channels_last", "transposed", "permuted", "one row")


def bits(tensor: torch.Tensor) -> bytes:
    return (
        torch.empty(tensor.shape, dtype=tensor.dtype)
        .copy_(tensor)
        .reshape(-1)
        .view(torch.uint8)
        .numpy()
        .tobytes()
    )


@pytest.mark.parametrize("name", TENSORS)
def test_tensor_keeps_its_bits(name):
    (out,) = round_trip(TENSORS[name])
    assert (out.shape, out.dtype) == (TENSORS[name].shape, TENSORS[name].dtype)
    assert bits(out) == bits(TENSORS[name])


def test_cut_of_mixed_tensors_keeps_their_bits():
    for out, given in zip(round_trip(*TENSORS.values()), TENSORS.values(), strict=True):
        assert bits(out) == bits(given)


@pytest.mark.parametrize("name", DENSE)
def test_tensor_without_gaps_keeps_its_strides(name):
    (out,) = round_trip(TENSORS[name])
    assert out.stride() == TENSORS[name].stride()


@pytest.mark.parametrize("name", ["expanded", "sliced", "chunk"])
def test_tensor_with_gaps_or_overlap_becomes_contiguous(name):
    (out,) = round_trip(TENSORS[name])
    assert out.is_contiguous()


def test_slots_are_aligned_and_do_not_overlap():
    layout = Layout.of([torch.ones(3, dtype=torch.uint8), torch.ones(5).half(), torch.ones(4)])
    assert [s.offset for s in layout.slots] == [0, 64, 128]
    assert layout.nbytes == 192


def test_unpacking_copies_nothing():
    layout = Layout.of([torch.ones(2, 2), torch.ones(3)])
    buffer = PackCut(layout)((torch.ones(2, 2), torch.ones(3)))
    assert (buffer.dtype, buffer.shape) == (torch.uint8, (layout.nbytes,))
    for view in UnpackCut(layout)(buffer):
        assert view.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()


def test_layout_of_fake_tensors_is_that_of_real_ones():
    real = [TENSORS[n] for n in ("channels_last", "sliced", "int64")]
    with torch._subclasses.FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) for t in real]
    assert Layout.of(fake) == Layout.of(real)


def test_packing_another_number_of_tensors_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        PackCut(Layout.of([torch.ones(1), torch.ones(1)]))((torch.ones(1),))
