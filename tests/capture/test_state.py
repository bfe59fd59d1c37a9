"""A denoiser that keeps something from call to call is found by trying."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hybridiff_compile.capture.state import State
from tests.capture.stateful import Base, tried


class Counter(Base):
    def work(self, x: torch.Tensor) -> None:
        self.kept = (self.kept or 0) + 1


class Nested(Base):
    def work(self, x: torch.Tensor) -> None:
        self.counts["calls"][0] += 1


class Writes(Base):
    def work(self, x: torch.Tensor) -> None:
        self.get_buffer("count").add_(1)


class Features(Base):
    """The first call's features are there before anybody asks what changed."""

    def work(self, x: torch.Tensor) -> None:
        self.kept = x * 2


class Table(Base):
    """Made once, read later."""

    def work(self, x: torch.Tensor) -> None:
        if self.kept is None:
            self.kept = torch.arange(x.shape[-1])


class SameTable(Base):
    """Made again each time, of the same values."""

    def work(self, x: torch.Tensor) -> None:
        self.kept = torch.arange(x.shape[-1])


def hooked() -> Base:
    """What it keeps is in a hook's closure, as diffusers' caches have it in an object."""
    calls, denoiser = 0, Base()

    def hook(module: nn.Module, args: Any) -> None:
        nonlocal calls
        calls += 1

    denoiser.linear.register_forward_pre_hook(hook)
    return denoiser


@pytest.mark.parametrize("make", [Counter, Nested, Writes, Features, hooked])
def test_what_changes_from_call_to_call_is_found(make: Callable[[], Base]):
    answer, changing = tried(make())
    assert changing
    assert answer.shape == (2, 4)


@pytest.mark.parametrize("make", [Base, Table, SameTable])
def test_a_table_that_later_calls_only_read_is_none(make: Callable[[], Base]):
    assert tried(make())[1] == []


def test_the_second_look_is_taken_back():
    denoiser = Counter()
    tried(denoiser)
    assert denoiser.kept == 1
    nested = Nested()
    tried(nested)
    assert nested.counts == {"calls": [1]}


def test_features_of_a_call_before_are_found_too():
    denoiser = Features()
    denoiser(torch.randn(2, 4))
    assert tried(denoiser)[1]


def test_a_copy_of_a_list_is_no_change_but_the_list_is_put_back():
    denoiser = Base()
    inner, state = denoiser.counts["calls"], State.of(denoiser)
    denoiser.counts["calls"] = list(inner)  # as torch.export leaves it; another may have that list
    assert state.changes() == []
    state.restore()
    assert denoiser.counts["calls"] is inner


def test_state_is_put_back_by_identity():
    denoiser = Base()
    inner, state = denoiser.counts["calls"], State.of(denoiser)
    denoiser.counts["calls"] = [3]
    denoiser.kept = 7
    assert state.changes()
    state.restore()
    assert denoiser.counts["calls"] is inner
    assert denoiser.kept is None
    assert state.changes() == []
