import errno
import os
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from hybridiff_compile.errors import SpaceError
from hybridiff_compile.runtime import weights
from hybridiff_compile.runtime.published import Published
from hybridiff_compile.runtime.weights import Weight, attach, weights_file
from tests.runtime.odd import CPU, Odd, tensors


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "weights"


def publish(module: nn.Module, path: Path) -> weights.Manifest:
    return weights.publish(tensors(module), path)[0]


def test_attached_weights_have_the_bits_of_the_published_ones(file):
    module = Odd()
    before = {n: t.detach().clone() for n, t in tensors(module).items()}
    manifest = publish(module, file)
    attached = attach(file, manifest, CPU)
    assert attached.keys() == before.keys()
    for name, tensor in before.items():
        assert attached[name].dtype == tensor.dtype
        assert torch.equal(attached[name], tensor)
        assert torch.equal(tensors(module)[name], tensor)


def test_there_is_one_copy_a_write_is_seen_on_the_other_side(file):
    module = Odd()
    manifest = publish(module, file)
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
    manifest = publish(module, file)
    attached = attach(file, manifest, CPU)
    file.unlink()
    with torch.no_grad():
        module.token.weight.fill_(2.0)
    assert (attached["token.weight"] == 2).all()


def test_strides_are_kept(file):
    module = Odd()
    manifest = publish(module, file)
    attached = attach(file, manifest, CPU)
    assert attached["conv.weight"].is_contiguous(memory_format=torch.channels_last)
    assert module.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert attached["flipped"].stride() == module.flipped.stride() == (1, 6)
    assert attached["table"].shape == (3, 8)


def test_tied_parameters_stay_tied_and_travel_once(file):
    module = Odd()
    manifest = publish(module, file)
    assert "head.weight" not in manifest
    assert module.head.weight is module.token.weight
    published = Published(module)
    published.refresh({})
    assert published.names[id(module.head.weight)] == "token.weight"
    assert len(published.names) == len(manifest) == len(tensors(module))


def test_parameters_stay_the_same_objects():
    module = Odd()
    before = {n: (id(t), t.requires_grad) for n, t in tensors(module).items()}
    published = Published(module)
    assert published.refresh({})
    assert {n: (id(t), t.requires_grad) for n, t in tensors(module).items()} == before
    assert published.names == {i: n for n, (i, _) in before.items()}


def test_weights_do_not_overlap_and_keep_their_alignment(file):
    module = Odd()
    unaligned = torch.empty(33).view(-1)[1:].detach()
    module.narrow.bias = nn.Parameter(unaligned)  # at 4 mod 64, as in a mapped file
    places = {n: t.data_ptr() % 64 for n, t in tensors(module).items()}
    manifest = publish(module, file)
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
    first = publish(module, file)
    old = attach(file, first, CPU)
    second = publish(module, tmp_path / "again")
    new = attach(tmp_path / "again", second, CPU)
    with torch.no_grad():
        module.conv.weight.fill_(5.0)
    assert (new["conv.weight"] == 5).all()
    assert not (old["conv.weight"] == 5).any()


def test_module_without_weights_can_be_published(file):
    assert attach(file, publish(nn.Identity(), file), CPU) == {}
    published = Published(nn.Identity())
    assert not published.refresh({})
    assert published.names == {}


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
