"""What hooks keep outside the denoiser (in globals, classes, closures) is found as well."""

import functools
import itertools
import linecache
import logging
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from hybridiff_compile.capture.state import State, kept
from tests.capture.stateful import hooked_by, tried

CALLS = 0
FEATURES: list[torch.Tensor] = []
SETTINGS = SimpleNamespace(calls=0)


def counting() -> int:
    global CALLS
    CALLS += 1
    return CALLS


class Slotted:
    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *_: Any) -> None:
        self.calls += 1


class OfItsClass:
    calls = 0

    def hook(self, *_: Any) -> None:
        self._note()

    def _note(self) -> None:
        OfItsClass.calls += 1


class ByMethods:
    def hook(self, *_: Any) -> None:
        self._note()

    def _note(self) -> None:
        counting()


class Called:
    def __call__(self, *_: Any) -> None:
        counting()


class Owner:
    def __init__(self) -> None:
        self.calls = 0

    def hook(self, *_: Any) -> None:
        self.calls += 1


def in_a_global(*_: Any) -> None:
    counting()


def in_an_inner_function(*_: Any) -> None:
    def note() -> None:
        counting()

    note()


def in_a_list(module: nn.Module, args: Any, out: torch.Tensor) -> None:
    FEATURES.append(out)


def in_an_object(*_: Any) -> None:
    SETTINGS.calls += 1


def in_an_attribute(*_: Any) -> None:
    vars(in_an_attribute)["calls"] = vars(in_an_attribute).get("calls", 0) + 1


def in_a_default(*_: Any, held: list[int] = []) -> None:  # noqa: B006 - what is tested
    held.append(1)


def by_count(counter: Iterator[int]) -> Callable[..., None]:
    return lambda *_: print(end="" * next(counter))


def without_gradients() -> Callable[..., Any]:
    return torch.no_grad()(in_a_global)


#: Each keeps a count where no module has it.
HOOKS: dict[str, Callable[[], Callable[..., Any]]] = {
    "a global": lambda: in_a_global,
    "a global, by an inner function": lambda: in_an_inner_function,
    "a global list": lambda: in_a_list,
    "a global object": lambda: in_an_object,
    "an attribute of the hook": lambda: in_an_attribute,
    "a default": lambda: in_a_default,
    "a partial": lambda: functools.partial(in_a_default, held=[]),
    "itertools.count": lambda: by_count(itertools.count()),
    "an iterator of a list": lambda: by_count(iter([0, 1, 2, 3, 4])),
    "slots": Slotted,
    "the object of a method": lambda: Owner().hook,
    "the class of a method": lambda: OfItsClass().hook,
    "a global, by another method": lambda: ByMethods().hook,
    "a global, by an object": Called,
    "a decorated hook": without_gradients,
}


@pytest.mark.parametrize("place", HOOKS)
def test_what_a_hook_keeps_elsewhere_is_found_and_the_second_look_taken_back(place: str):
    hook = HOOKS[place]()
    denoiser = hooked_by(hook)
    FEATURES.clear()
    calls = CALLS, SETTINGS.calls, OfItsClass.calls
    assert tried(denoiser)[1]
    # Of the two calls that a look takes, one is the pipeline's own.
    assert len(FEATURES) == (place == "a global list")
    assert sum((CALLS, SETTINGS.calls, OfItsClass.calls)) - sum(calls) <= 1
    if isinstance(hook, Slotted):
        assert hook.calls == 1


def test_an_iterator_goes_on_once_only():
    counter = itertools.count()
    tried(hooked_by(by_count(counter)))
    assert next(counter) == 1


def test_a_global_that_a_trial_makes_is_taken_away():
    def hook(*_: Any) -> None:
        global MADE
        MADE = 1

    denoiser = hooked_by(hook)
    with kept(denoiser):
        denoiser(torch.randn(2, 4))
        assert globals()["MADE"] == 1
    assert "MADE" not in globals()


def test_what_a_trial_leaves_in_a_global_list_is_taken_out():
    denoiser = hooked_by(in_a_list)
    FEATURES[:] = [mark := torch.zeros(1)]
    with kept(denoiser):
        denoiser(torch.randn(2, 4))
        assert len(FEATURES) == 2
    assert len(FEATURES) == 1
    assert FEATURES[0] is mark


@functools.lru_cache
def table(n: int) -> torch.Tensor:
    return torch.arange(n)


logger = logging.getLogger(__name__)


def logging_hook(module: nn.Module, args: Any, out: torch.Tensor) -> None:
    """Loggers note which levels were asked for, warnings where they were given, caches answers."""
    logger.debug("%d", len(table(out.shape[-1])))
    linecache.getline(__file__, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.warn(f"{out.sum()}", stacklevel=1)


def test_loggers_warnings_and_caches_of_answers_are_nothing_that_is_kept():
    denoiser, own = hooked_by(logging_hook), logger
    denoiser.linear.register_forward_hook(lambda *_: own.debug("a closure's"))
    linecache.clearcache()
    own.manager._clear_cache()  # pyright: ignore[reportAttributeAccessIssue]
    state = State.of(denoiser)
    denoiser(torch.randn(2, 4))
    assert state.changes() == []
