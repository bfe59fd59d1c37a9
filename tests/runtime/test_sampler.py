import copy
import inspect
import itertools
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from hybridiff_compile.runtime.sampler import draws_noise, inputs, watched

X = torch.linspace(-1, 1, 16).reshape(1, 4, 2, 2)
Y = X + 1


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


def test_watched_scheduler_tells_of_every_step_and_steps_as_ever():
    told: list[Any] = []
    scheduler, twin = ready(EulerDiscreteScheduler), ready(EulerDiscreteScheduler)
    with watched(scheduler, lambda *given: told.append(given)):
        assert "s_churn" in inspect.signature(scheduler.step).parameters
        assert "self" not in inspect.signature(scheduler.step).parameters
        for t in scheduler.timesteps[:2]:
            out = scheduler.step(X, t, sample=X).prev_sample
            assert torch.equal(out, twin.step(X, t, X).prev_sample)
    assert [args for args, _ in told] == [(X, t) for t in scheduler.timesteps[:2]]
    assert all(kwargs["sample"] is X for _, kwargs in told)
    assert "step" not in vars(scheduler)


def test_copy_of_a_watched_scheduler_steps_by_itself():
    """Pipelines of two modalities copy their scheduler for the second one."""
    told: list[Any] = []
    scheduler = ready(EulerDiscreteScheduler)
    with watched(scheduler, lambda *given: told.append(given)):
        other = copy.deepcopy(scheduler)
        out = other.step(X, other.timesteps[0], X).prev_sample
    assert not told
    assert (other.step_index, scheduler.step_index) == (1, None)
    twin = ready(EulerDiscreteScheduler)
    assert torch.equal(out, twin.step(X, twin.timesteps[0], X).prev_sample)


def test_scheduler_is_left_as_it_was():
    scheduler = ready(EulerDiscreteScheduler)
    with pytest.raises(ZeroDivisionError), watched(scheduler, lambda *given: None):
        raise ZeroDivisionError
    assert "step" not in vars(scheduler)

    def own(*args: Any) -> str:
        return "mine"

    scheduler.step = own
    with watched(scheduler, lambda *given: None):
        assert scheduler.step(X, 0, X) == "mine"
    assert scheduler.step is own


def test_what_a_scheduler_is_given_by_position_or_by_name():
    scheduler, t = ready(EulerDiscreteScheduler), 0
    assert inputs(scheduler, (X, t, Y), {}) == (X, Y)
    assert inputs(scheduler, (), {"sample": Y, "timestep": t, "model_output": X}) == (X, Y)
    assert inputs(ready(CogVideoXDPMScheduler), (X, None, t, t, Y), {}) == (X, Y)
    assert inputs(scheduler, ([X], t, None), {}) == (None, None)
    assert inputs(scheduler, (), {"unknown": X}) == (None, None)
