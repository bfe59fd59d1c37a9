"""What hooks and processors read of their pipeline and its scheduler is seen."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from hybridiff_compile.capture.fingerprint import Watch
from hybridiff_compile.capture.state import State
from tests.capture.stateful import hooked_by


class Scheduler:
    """As pipelines and schedulers are: each step changes them."""

    config = None

    def __init__(self) -> None:
        self.counted, self._step_index = 0, 0

    def register_to_config(self) -> None: ...

    @property
    def step_index(self) -> int:
        return self._step_index


class Pipeline(Scheduler):
    def __init__(self) -> None:
        super().__init__()
        self.scheduler, self._guidance_scale = Scheduler(), 5.0

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def is_guided(self) -> bool:
        return self._guidance_scale > 1


PIPE = Pipeline()


class ByAttribute:
    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    def __call__(self, *_: Any) -> None:
        print(end="" * self.pipe.scheduler.step_index)


def by_scheduler(pipe: Any) -> Callable[..., None]:
    scheduler = pipe.scheduler
    return lambda *_: print(end="" * scheduler.step_index)


def by_global(pipe: Any) -> Callable[..., None]:
    return lambda *_: print(end="" * PIPE.scheduler.step_index)


def by_helper(pipe: Any) -> Callable[..., None]:
    def step_of(any_pipe: Any) -> int:
        return any_pipe.scheduler.step_index

    return lambda *_: print(end="" * step_of(pipe))


@pytest.mark.parametrize("hook", [ByAttribute, by_scheduler, by_global, by_helper])
def test_what_is_read_through_a_pipeline_is_seen(hook: Callable[[Any], Callable[..., Any]]):
    pipe = PIPE if hook is by_global else Pipeline()
    denoiser: nn.Module = hooked_by(hook(pipe))
    watch, state = Watch(denoiser), State.of(denoiser)
    pipe.scheduler.counted += 1
    pipe.counted += 1
    assert watch._look.is_untouched()
    assert state.changes() == []
    pipe.scheduler._step_index += 1
    assert not watch.holds()
    assert "_step_index" in state.changes()[0]


def test_what_a_property_of_a_pipeline_reads_is_seen():
    pipe = Pipeline()
    watch = Watch(hooked_by(lambda module, args, out: out * pipe.is_guided))
    pipe._guidance_scale = 1.0
    assert not watch.holds()


def test_of_a_pipeline_a_hook_reads_what_it_names():
    pipe = Pipeline()
    state = State.of(hooked_by(lambda module, args, out: out * pipe.guidance_scale))
    pipe.counted += 1
    assert state.changes() == []
    pipe._guidance_scale = 7.0
    assert state.changes()
