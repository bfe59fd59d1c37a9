"""How long a command is said to take, by a step that was measured."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hybridiff_compile.bench import estimate
from hybridiff_compile.bench.bench import COMPILED
from hybridiff_compile.bench.demo import MODES


def test_a_picture_costs_its_steps_and_ranks_cost_a_start():
    none = estimate.pictures(0.1, ["one-device"], 0)
    assert none == 0
    assert estimate.pictures(0.1, ["one-device"], 50) == pytest.approx(5)
    assert estimate.pictures(0.1, ["exact"], 0) > 0
    more = estimate.pictures(0.1, MODES, 100) - estimate.pictures(0.1, MODES, 0)
    assert more == pytest.approx(100 * 0.1 * (1 + 1.6 + 1 + 1 + 0.6))


def test_compiled_rows_take_longer_than_eager_ones_and_blocks_less_than_all():
    def one(backend: Any, scope: Any) -> float:
        return estimate.rows(0.1, [("exact", backend, scope)], 50, again=True)

    assert one("eager", None) < one("inductor", "regional") < one("inductor", "whole")
    assert estimate.rows(0.1, [("exact", "eager", None)], 50) < estimate.rows(
        0.1, [("exact", "inductor", "regional")], 50
    )
    assert estimate.rows(0.2, COMPILED, 9, True) > estimate.rows(0.1, COMPILED, 9, True)
    # A process that is ready at once is not started once more.
    assert estimate.rows(0.1, COMPILED, 9, True) > estimate.rows(0.1, COMPILED, 9)
    assert estimate.rows(0.1, COMPILED[:1], 9, True) == estimate.rows(0.1, COMPILED[:1], 9)


def test_a_step_is_measured_between_the_ends_of_steps(monkeypatch):
    now = iter([0.0, 5.0, 5.1, 5.3, 5.4, 5.5, 9.0])  # begins, five steps end, is decoded
    monkeypatch.setattr("hybridiff_compile.bench.measure.time.perf_counter", lambda: next(now))

    def pipe(prompt: str, *, num_inference_steps: int, height: int, **how: Any) -> Any:
        assert (num_inference_steps, height, torch.get_num_threads()) == (5, 64, 1)
        for i in range(num_inference_steps):
            how["callback_on_step_end"](pipe, i, 0, {"latents": torch.zeros(1)})
        return SimpleNamespace(images=torch.zeros(1, 8, 8, 3))

    call = {"height": 64, "num_inference_steps": 50}
    assert estimate.step_seconds(pipe, call) == pytest.approx(0.1)
