"""How far a call is, as its callbacks see it."""

from __future__ import annotations

from typing import Any

import hybridiff_compile
from hybridiff_compile.runtime.report import Progress
from tests import pipelines

NAME, STEPS = "tiny-sd3", 20


def seen_by_callbacks(model: Any, **call: Any) -> list[Progress | None]:
    seen: list[Progress | None] = []

    def look(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        seen.append(model.progress)
        return values

    pipelines.latents(model, NAME, callback_on_step_end=look, num_inference_steps=STEPS, **call)
    return seen


def test_each_step_is_seen_with_its_phase_and_nothing_between_calls() -> None:
    with hybridiff_compile.optimize(pipelines.load(NAME), gpus=1) as model:
        assert model.progress is None
        seen = seen_by_callbacks(model)
        done = [Progress(s.index, STEPS, s.phase.kind) for s in model.report.steps]
        assert seen == done
        assert {p.phase for p in done} == {"serial", "forecast"}
        assert model.progress is None


def test_steps_that_one_rank_runs_as_they_are_are_seen_too() -> None:
    with hybridiff_compile.optimize(pipelines.load(NAME), gpus=1, mode="exact") as model:
        seen = seen_by_callbacks(model, guidance_scale=1.0)
    assert seen == [Progress(i, STEPS, "as it is") for i in range(STEPS)]
