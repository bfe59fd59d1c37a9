import errno
import os
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from hybridiff_compile.errors import SpaceError
from hybridiff_compile.runtime.weights import Published, Weight, attach, publish, weights_file

CPU = torch.device("cpu")


class Odd(nn.Module):
    """Weights of every kind: channels_last, transposed, tied, half precision, buffers, frozen."""

    steps: torch.Tensor
    table: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)  # pyright: ignore
        self.token = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.token.weight
        self.narrow = nn.Linear(3, 3).half()
        self.flipped = nn.Parameter(torch.randn(4, 6).t(), requires_grad=False)
        self.register_buffer("steps", torch.tensor(12))
        self.register_buffer("table", torch.arange(8).expand(3, 8), persistent=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "weights"


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict((*module.named_parameters(), *module.named_buffers()))


def test_attached_weights_have_the_bits_of_the_published_ones(file):
    module = Odd()
    before = {n: t.detach().clone() for n, t in tensors(module).items()}
    manifest, *_ = publish(module, file)
    attached = attach(file, manifest, CPU)
    assert attached.keys() == before.keys()
    for name, tensor in before.items():
        assert attached[name].dtype == tensor.dtype
        assert torch.equal(attached[name], tensor)
        assert torch.equal(tensors(module)[name], tensor)


def test_there_is_one_copy_a_write_is_seen_on_the_other_side(file):
    module = Odd()
    manifest, *_ = publish(module, file)
    attached = attach(file, manifest, CPU)
    with torch.no_grad():
        module.conv.weight.fill_(3.0)
        module.steps.fill_(99)
        attached["flipped"].zero_()
    assert (attached["conv.weight"] == 3).all()
    assert attached["steps"] == 99
    assert (module.flipped == 0).all()


def test_mapping_outlives_its_file(file):
    module = Odd()
    manifest, *_ = publish(module, file)
    attached = attach(file, manifest, CPU)
    file.unlink()
    with torch.no_grad():
        module.token.weight.fill_(2.0)
    assert (attached["token.weight"] == 2).all()


def test_strides_are_kept(file):
    module = Odd()
    manifest, *_ = publish(module, file)
    attached = attach(file, manifest, CPU)
    assert attached["conv.weight"].is_contiguous(memory_format=torch.channels_last)
    assert module.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert attached["flipped"].stride() == module.flipped.stride() == (1, 6)
    assert attached["table"].shape == (3, 8)


def test_tied_parameters_stay_tied_and_travel_once(file):
    module = Odd()
    manifest, names, _ = publish(module, file)
    assert "head.weight" not in manifest
    assert module.head.weight is module.token.weight
    assert names[id(module.head.weight)] == "token.weight"
    assert len(names) == len(manifest) == len(tensors(module))


def test_parameters_stay_the_same_objects(file):
    module = Odd()
    before = {n: (id(t), t.requires_grad) for n, t in tensors(module).items()}
    _, names, _ = publish(module, file)
    assert {n: (id(t), t.requires_grad) for n, t in tensors(module).items()} == before
    assert names == {i: n for n, (i, _) in before.items()}


def test_weights_do_not_overlap_and_keep_their_alignment(file):
    module = Odd()
    unaligned = torch.empty(33).view(-1)[1:].detach()
    module.narrow.bias = nn.Parameter(unaligned)  # at 4 mod 64, as in a mapped file
    places = {n: t.data_ptr() % 64 for n, t in tensors(module).items()}
    manifest, *_ = publish(module, file)
    end = 0
    for name, weight in manifest.items():
        assert isinstance(weight, Weight)
        assert tensors(module)[name].data_ptr() % 64 == places[name]
        assert weight.offset >= end
        count = torch.Size(weight.shape).numel()
        end = weight.offset + count * weight.dtype.itemsize
    assert file.stat().st_size >= end


def test_publishing_again_moves_the_weights_to_the_new_file(file, tmp_path):
    module = Odd()
    first, *_ = publish(module, file)
    old = attach(file, first, CPU)
    second, *_ = publish(module, tmp_path / "again")
    new = attach(tmp_path / "again", second, CPU)
    with torch.no_grad():
        module.conv.weight.fill_(5.0)
    assert (new["conv.weight"] == 5).all()
    assert not (old["conv.weight"] == 5).any()


def test_module_without_weights_can_be_published(file):
    manifest, names, _ = publish(nn.Identity(), file)
    assert attach(file, manifest, CPU) == names == {}


def test_room_for_the_weights_is_taken_before_they_are_written(file, monkeypatch):
    taken = []
    own = os.posix_fallocate

    def take(handle: int, offset: int, size: int) -> None:
        taken.append((offset, size))
        own(handle, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", take)
    publish(Odd(), file)
    assert taken == [(0, file.stat().st_size)]


def test_no_room_for_a_file_without_a_name_says_where(monkeypatch, tmp_path):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with weights_file() as (_, path), pytest.raises(SpaceError, match=f"^{tmp_path} has no room"):
        publish(Odd(), path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_for_the_weights_is_an_error_that_says_where(file, monkeypatch, number):
    module = Odd()
    places = {n: t.data_ptr() for n, t in tensors(module).items()}

    def full(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SpaceError) as e:
        publish(module, file)
    text = str(e.value)
    assert re.match(rf"{file.parent} has no room for the \d\d\d+ bytes of the shared", text)
    assert "set TMPDIR" in text
    assert {n: t.data_ptr() for n, t in tensors(module).items()} == places


def names_in_maps() -> int:
    return Path("/proc/self/maps").read_text().count("hybridiff-weights-")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_closed_weights_are_private_memory_in_the_same_place():
    module = Odd()
    with torch.inference_mode():
        module.register_buffer("inferred", torch.ones(5))
    published = Published(module)
    assert published.path is not None
    attached = attach(published.path, published.manifest, CPU)
    alias = module.conv.weight.data
    with torch.no_grad():
        module.conv.weight.fill_(3.0)
    places = {n: t.data_ptr() for n, t in tensors(module).items()}
    published.close()
    assert (attached["conv.weight"] == 3).all()
    for name, tensor in tensors(module).items():
        assert torch.equal(tensor, attached[name])
    assert (module.conv.weight == 3).all()  # what was written before is there
    with torch.no_grad():
        module.steps.fill_(99)
        alias.fill_(4.0)
        attached["flipped"].zero_()  # as a worker that has not ended yet never does
    with torch.inference_mode():
        module.inferred.fill_(2.0)  # pyright: ignore
    assert (module.conv.weight == 4).all()
    assert (attached["conv.weight"] == 3).all()
    assert (attached["inferred"] == 1).all()
    assert attached["steps"] == 12
    assert module.inferred.is_inference()  # pyright: ignore
    assert {n: t.data_ptr() for n, t in tensors(module).items()} == places
    assert published.path is None
    published.close()  # the second time it does nothing: its handle may be another file's


def test_weights_published_and_closed_again_and_again_leave_one_mapping():
    module, before, counts = Odd(), names_in_maps(), []
    for value in range(4):
        with torch.no_grad():
            module.conv.weight.fill_(value)
        Published(module).close()
        counts.append((names_in_maps() - before, open_files()))
        assert (module.conv.weight == value).all()
    assert counts == [(1, counts[0][1])] * 4


def test_weights_stay_as_they_are_where_the_system_gives_no_private_memory(monkeypatch, caplog):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    module = Odd()
    before = {n: (t.data_ptr(), t.detach().clone()) for n, t in tensors(module).items()}
    published = Published(module)
    places = {n: t.data_ptr() for n, t in tensors(module).items()}
    monkeypatch.setattr("mmap.mmap", full)
    published.close()
    assert "Cannot allocate memory" in caplog.text
    for name, tensor in tensors(module).items():
        assert tensor.data_ptr() == places[name]
        assert torch.equal(tensor, before[name][1])
