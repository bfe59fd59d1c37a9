"""Weights are kept in files as they are now; what is another one is written again."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hybridiff_compile.runtime import weights
from hybridiff_compile.runtime.published import Published, Stamp
from hybridiff_compile.runtime.weights import attach
from tests.runtime.odd import CPU, Odd, tensors


def take(published: Published, have: dict[str, Stamp]) -> dict[str, torch.Tensor]:
    """What a worker lacks, as it maps it."""
    found = dict[str, torch.Tensor]()
    for path, manifest, _ in published.offer(have):
        found |= attach(path, manifest, CPU)
    return found


def names_in_maps() -> int:
    return Path("/proc/self/maps").read_text().count("hybridiff-weights-")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_closed_weights_are_private_memory_in_the_same_place():
    module = Odd()
    with torch.inference_mode():
        module.register_buffer("inferred", torch.ones(5))
    published = Published(module)
    published.refresh({})
    attached = take(published, {})
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
    assert not list(published.offer({}))
    published.close()  # the second time it does nothing: its handle may be another file's


def test_weights_published_and_closed_again_and_again_leave_one_mapping():
    module, before, counts = Odd(), names_in_maps(), []
    for value in range(4):
        with torch.no_grad():
            module.conv.weight.fill_(value)
        published = Published(module)
        published.refresh({})
        published.close()
        counts.append((names_in_maps() - before, open_files()))
        assert (module.conv.weight == value).all()
    assert counts == [(1, counts[0][1])] * 4


def test_weights_stay_as_they_are_where_the_system_gives_no_private_memory(monkeypatch, caplog):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    module = Odd()
    before = {n: (t.data_ptr(), t.detach().clone()) for n, t in tensors(module).items()}
    published = Published(module)
    published.refresh({})
    places = {n: t.data_ptr() for n, t in tensors(module).items()}
    monkeypatch.setattr("mmap.mmap", full)
    published.close()
    assert "Cannot allocate memory" in caplog.text
    for name, tensor in tensors(module).items():
        assert tensor.data_ptr() == places[name]
        assert torch.equal(tensor, before[name][1])


def test_only_what_is_another_one_is_written_again():
    module, have = Odd(), dict[str, Stamp]()
    published = Published(module)
    assert published.refresh(have)
    held = take(published, have)
    assert not published.refresh(have)
    with torch.no_grad():
        module.conv.weight.fill_(3.0)  # in place: the worker has it
    assert not published.refresh(have)
    assert take(published, have) == {}
    assert (held["conv.weight"] == 3).all()
    module.conv.weight.data = torch.full_like(module.conv.weight, 4.0)  # as merged adapters do
    assert published.refresh(have)
    found = take(published, have)
    assert found.keys() == {"conv.weight"}
    weights.exchange(held, found, ())
    with torch.no_grad():
        module.conv.weight.add_(1.0)
    assert (held["conv.weight"] == 5).all()
    assert take(published, have) == {}


def test_another_worker_is_given_all_that_is_current():
    module = Odd()
    published = Published(module)
    published.refresh({})
    module.conv.weight.data = torch.full_like(module.conv.weight, 4.0)
    published.refresh({})
    found = take(published, {})
    assert found.keys() == tensors(module).keys()
    for name, tensor in tensors(module).items():
        assert torch.equal(found[name], tensor)


def test_a_weight_that_moves_to_another_path_keeps_its_name_and_one_that_is_gone_is_told():
    module: Any = nn.Sequential(nn.Linear(2, 2, bias=False))
    have = dict[str, Stamp]()
    published = Published(module)
    published.refresh(have)
    first = take(published, have)["0.weight"]
    module[0] = nn.Sequential(module[0], nn.Linear(2, 2, bias=False))
    module.add_module("other", nn.Linear(2, 2, bias=False))
    assert published.refresh(have)
    assert take(published, have).keys() == {"0.1.weight", "other.weight"}
    assert published.names[id(module[0][0].weight)] == "0.weight"
    new = nn.Linear(2, 2, bias=False)
    module[0] = new  # at the old path, whose name is free again
    published.refresh(have)
    ((path, manifest, gone),) = published.offer(have)
    assert gone == ("0.1.weight",)
    found = attach(path, manifest, CPU)
    assert torch.equal(found["0.weight"], new.weight)
    assert not torch.equal(first, new.weight)


def test_files_that_nobody_needs_are_closed():
    module, have = Odd(), dict[str, Stamp]()
    published, before = Published(module), open_files()
    for value in range(30):
        module.conv.weight.data = torch.full_like(module.conv.weight, value)
        published.refresh(have)
        take(published, have)
        assert open_files() - before == (1 if value == 0 else 2)


def test_weights_of_one_memory_stay_in_one():
    module, have = nn.Linear(4, 4), dict[str, Stamp]()
    whole = torch.arange(20.0)
    module.weight.data, module.bias.data = whole[:16].view(4, 4), whole[12:16]
    published = Published(module)
    published.refresh(have)
    held = take(published, have)
    module.bias.data = whole = torch.arange(10.0)
    module.weight.data = torch.ones(4, 4)
    module.bias.data = module.weight.data[3]
    published.refresh(have)
    weights.exchange(held, take(published, have), ())
    with torch.no_grad():
        module.weight[3].fill_(7.0)
    assert (module.bias == 7).all()
    assert (held["bias"] == 7).all()
    assert (held["weight"][3] == 7).all()


def test_a_weight_that_comes_to_share_the_memory_of_another_one_stays_in_it():
    module, have = nn.Linear(4, 4), dict[str, Stamp]()
    published = Published(module)
    published.refresh(have)
    held = take(published, have)
    module.register_buffer("row", module.weight.data[3])
    published.refresh(have)
    weights.exchange(held, take(published, have), ())
    with torch.no_grad():
        module.weight[3].fill_(7.0)
    assert (held["row"] == 7).all()
    assert (module.get_buffer("row") == 7).all()


def test_what_is_gone_is_let_go():
    held = {"a": torch.ones(2), "b": torch.ones(2)}
    weights.exchange(held, {"b": torch.zeros(2)}, ("a",))
    assert held.keys() == {"b"}
    assert (held["b"] == 0).all()


def test_whether_a_weight_takes_a_gradient_is_told_without_its_data():
    module, have = nn.Linear(4, 4), dict[str, Stamp]()
    published = Published(module)
    published.refresh(have)
    held = take(published, have)
    module.weight.requires_grad_(False)
    assert not published.refresh(have)
    found = take(published, have)
    weights.exchange(held, found, ())
    assert found.keys() == {"weight"}
    assert not held["weight"].requires_grad
    assert held["bias"].requires_grad
    with torch.no_grad():
        module.weight.fill_(7.0)
    assert (held["weight"] == 7).all()
