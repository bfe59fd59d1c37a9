"""Settings in arrays, numbers of other kinds, context variables and the like are seen as well."""

import array
import threading
import types
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from hybridiff_compile.capture.fingerprint import Watch
from hybridiff_compile.capture.state import State
from hybridiff_compile.capture.told import count_of
from tests.capture.stateful import Base, hooked_by, tried


class Options:
    def __init__(self) -> None:
        self.strength = 1.0


ARRAY, ROW, BYTES = np.array([1.0]), array.array("d", [1.0]), bytearray(b"\1")
NUMBER, DECIMAL, FRACTION = np.float32(1.0), Decimal(1), Fraction(1)
CONTEXT: ContextVar[float] = ContextVar("strength", default=1.0)
THREAD = threading.local()
THREAD.strength = 1.0
MAPPED = {"strength": 1.0}
PROXY = types.MappingProxyType(MAPPED)
OPTIONS = Options()
REFERENCE = weakref.ref(OPTIONS)


#: How a hook reads a setting, and how a user sets it.
SETTINGS: dict[str, tuple[Callable[[], float], Callable[[float], Any]]] = {
    "an array of NumPy": (lambda: ARRAY[0], lambda v: ARRAY.__setitem__(0, v)),
    "an array": (lambda: ROW[0], lambda v: ROW.__setitem__(0, v)),
    "bytes": (lambda: BYTES[0], lambda v: BYTES.__setitem__(0, int(v))),
    "a number of NumPy": (lambda: float(NUMBER), lambda v: _set("NUMBER", np.float32(v))),
    "a decimal": (lambda: float(DECIMAL), lambda v: _set("DECIMAL", Decimal(v))),
    "a fraction": (lambda: float(FRACTION), lambda v: _set("FRACTION", Fraction(v))),
    "a context variable": (lambda: CONTEXT.get(), lambda v: CONTEXT.set(v)),
    "of a thread": (lambda: THREAD.strength, lambda v: setattr(THREAD, "strength", v)),
    "behind a proxy": (lambda: PROXY["strength"], lambda v: MAPPED.__setitem__("strength", v)),
    "behind a reference": (
        lambda: vars(REFERENCE())["strength"],
        lambda v: setattr(OPTIONS, "strength", v),
    ),
}


def _set(name: str, value: Any) -> None:
    globals()[name] = value


@pytest.mark.parametrize("where", SETTINGS)
def test_a_setting_is_seen_wherever_it_is(where: str):
    read, write = SETTINGS[where]
    denoiser = hooked_by(lambda module, args, out: out * read())
    watch, state = Watch(denoiser), State.of(denoiser)
    write(2.0)
    try:
        assert read() == 2.0
        assert not watch.holds()
        assert state.changes()
    finally:
        write(1.0)
    assert Watch(denoiser).value == watch.value


def test_an_array_that_counts_is_found_at_the_pipelines_own_call():
    calls = np.zeros(1)
    _, changing = tried(hooked_by(lambda *_: calls.__iadd__(1) is None))
    assert changing
    assert calls == 1  # a second look would count, too


def test_an_array_of_another_shape_is_another_one():
    assert count_of(np.zeros((2, 3))) != count_of(np.zeros((3, 2)))


def test_what_was_made_under_inference_mode_is_seen_by_its_values():
    with torch.inference_mode():
        scale = torch.ones(())
        denoiser = hooked_by(lambda module, args, out: out * scale)
        watch, state = Watch(denoiser), State.of(denoiser)
        assert watch._look.is_untouched()
        scale.mul_(0.5)
        assert not watch.holds()
        assert state.written()


def test_a_buffer_that_counts_under_inference_mode_is_found_at_once():
    class Counts(Base):
        def work(self, x: torch.Tensor) -> None:
            self.count += 1

    with torch.inference_mode():
        denoiser = Counts()
        _, changing = tried(denoiser)
    assert changing
    assert denoiser.count == 1


def test_another_attention_in_the_place_of_torchs_is_seen(monkeypatch: pytest.MonkeyPatch):
    watch = Watch(Base())
    monkeypatch.setattr(functional, "scaled_dot_product_attention", lambda q, k, v: v)
    assert not watch.holds()
    monkeypatch.undo()
    assert watch.holds()
