import copy
import inspect
import itertools
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from hybridiff_compile.runtime.sampler import draws_noise, watched

X = torch.linspace(-1, 1, 16).reshape(1, 4, 2, 2)


def ready(kind: Any, **config: Any) -> Any:
    scheduler = kind(**config)
    scheduler.set_timesteps(8)
    return scheduler


SCHEDULERS = [
    (ready(DDIMScheduler), {}, False),
    (ready(DDIMScheduler), {"eta": 1.0}, True),
    (ready(EulerDiscreteScheduler), {}, False),
    (ready(DPMSolverMultistepScheduler), {}, False),
    (ready(FlowMatchEulerDiscreteScheduler), {}, False),
    (ready(EulerAncestralDiscreteScheduler), {}, True),
    (ready(DDPMScheduler), {}, True),
    (ready(DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++"), {}, True),
]
#: All of them with each kind of generator; flow matching's step takes one only.
CASES = [
    (*case, generator)
    for case, generator in itertools.product(SCHEDULERS, [None, "one", "several"])
    if generator != "several" or not isinstance(case[0], FlowMatchEulerDiscreteScheduler)
]


@pytest.mark.parametrize(("scheduler", "extra", "noisy", "generator"), CASES)
def test_noise_is_noticed_by_what_a_step_does(scheduler, extra, noisy, generator):
    given = {
        None: None,
        "one": torch.Generator().manual_seed(5),
        "several": [torch.Generator().manual_seed(5)],
    }[generator]
    before = (torch.get_rng_state(), getattr(scheduler, "_step_index", None))
    args = (X, scheduler.timesteps[0], X + 1)
    assert draws_noise(scheduler, args, {**extra, "generator": given}) is noisy
    assert torch.equal(torch.get_rng_state(), before[0])
    assert getattr(scheduler, "_step_index", None) == before[1]


def test_watched_scheduler_tells_once_and_steps_as_ever():
    told: list[bool] = []
    steps: list[None] = []
    scheduler, twin = ready(EulerDiscreteScheduler), ready(EulerDiscreteScheduler)
    with watched(scheduler, told.append, lambda: steps.append(None)):
        assert "s_churn" in inspect.signature(scheduler.step).parameters
        for t in scheduler.timesteps[:2]:
            out = scheduler.step(X, t, X).prev_sample
            assert torch.equal(out, twin.step(X, t, X).prev_sample)
    assert told == [False]
    assert len(steps) == 2
    assert "step" not in vars(scheduler)


def test_a_deep_copy_of_a_watched_scheduler_steps_by_itself():
    steps: list[None] = []
    scheduler, twin = ready(EulerDiscreteScheduler), ready(EulerDiscreteScheduler)
    with watched(scheduler, None, lambda: steps.append(None)):
        other = copy.deepcopy(scheduler)
        for t in scheduler.timesteps[:2]:
            out = other.step(X, t, X).prev_sample
            assert torch.equal(out, twin.step(X, t, X).prev_sample)
    assert steps == []
    assert scheduler.step_index is None


def test_a_step_of_the_users_own_is_put_back():
    scheduler = ready(EulerDiscreteScheduler)
    own = scheduler.step = lambda *args, **kwargs: "own"
    with watched(scheduler, None, lambda: None):
        assert scheduler.step(X, scheduler.timesteps[0], X) == "own"
    assert vars(scheduler)["step"] is own


def test_scheduler_is_left_as_it_was_when_no_step_is_made():
    scheduler = ready(EulerDiscreteScheduler)
    with pytest.raises(ZeroDivisionError), watched(scheduler, lambda noisy: None, lambda: None):
        raise ZeroDivisionError
    assert "step" not in vars(scheduler)
