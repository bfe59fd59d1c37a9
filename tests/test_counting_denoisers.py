"""Denoisers that count their calls: no program takes their place, and no step is skipped."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hybridiff_compile
from tests import toy
from tests.test_sequential import Sequential, plain


class Counts(toy.Toy):
    """A denoiser that goes by how often it was called."""

    count = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        answer: Any = super().forward(*args, **kwargs)
        return (answer[0] * (1 + 0.1 * (self.count % 3)),)


@pytest.mark.parametrize("branches", ["c", "cu"])
def test_no_step_is_skipped_of_a_denoiser_that_counts_its_calls(branches, caplog):
    how: dict[str, Any] = {"branches": lambda step: branches, "kind": Counts}
    with hybridiff_compile.optimize(Sequential(**how), mode="hybrid", tolerance=10.0) as model:
        made = model(steps=30)
        assert not model.report.steps  # it is seen before a step is taken for one of its own
    assert (made - Sequential(**how)(steps=30)).abs().max() < 1e-4
    assert "one rank runs this" in caplog.text


class CountsLate(Counts):
    """Does so in the later half of the steps only."""

    def forward(self, sample: torch.Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        kind = Counts if float(timestep) < 1 else toy.Toy
        return kind.forward(self, sample, timestep, *args, **kwargs)


@pytest.mark.parametrize("gpus", [1, 2])
@pytest.mark.parametrize("branches", ["c", "cu"])
def test_no_step_is_skipped_any_more_of_one_that_begins_to_count(branches, gpus, caplog):
    how: dict[str, Any] = {"branches": lambda step: branches, "kind": CountsLate}
    with hybridiff_compile.optimize(Sequential(**how), gpus, mode="exact") as model:
        assert torch.equal(model(), plain(**how))
    with hybridiff_compile.optimize(
        Sequential(**how), gpus, mode="hybrid", tolerance=10.0
    ) as model:
        model(steps=60)
        late = [s for s in model.report.steps if s.index > 35]
        assert not [s for s in late if s.phase.name == "FORECAST"]
    assert "one rank runs this" in caplog.text
