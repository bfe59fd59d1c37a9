"""Pipelines that call their denoiser once for each branch: both ranks begin at the first call."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

import hybridiff_compile
from hybridiff_compile.errors import HybridiffError
from tests import toy
from tests.reference import one_thread

STEPS = 8
#: Lengths of the texts: those of a branch need not be as long as another's.
LENGTHS = {"c": 3, "u": 3, "s": 3, "l": 5}


class Sequential:
    """Guides by a call for each branch.

    Args:
        branches: of a step, by its number.
        act: is called between the first call of a step and the next one.
        pictures: how many.
    """

    def __init__(
        self,
        branches: Callable[[int], str] = lambda step: "cu",
        act: Callable[[Any, int], None] = lambda pipe, step: None,
        pictures: int = 1,
        kind: type[toy.Toy] = toy.Toy,
    ) -> None:
        self.unet: Any = toy.seeded(kind)
        self.scheduler: Any = DDIMScheduler(beta_schedule="scaled_linear")
        self.branches, self.act, self.pictures = branches, act, pictures

    def set_progress_bar_config(self, **config: Any) -> None:
        """As pipelines have it; there is no bar."""

    @torch.no_grad()
    def __call__(self, steps: int = STEPS, seed: int = 0, scale: float = 4.0) -> torch.Tensor:
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(self.pictures, 4, 8, 8, generator=g)
        self.text = {
            b: torch.randn(self.pictures, length, 6, generator=g) for b, length in LENGTHS.items()
        }
        self.scheduler.set_timesteps(steps)
        for i, t in enumerate(self.scheduler.timesteps):
            eps: dict[str, torch.Tensor] = {}
            for b in self.branches(i):
                (eps[b],) = self.unet(
                    x, t.float() / 500, encoder_hidden_states=self.text[b], return_dict=False
                )
                if len(eps) == 1:
                    self.act(self, i)
            first, *others = eps.values()
            guided = first + sum(((scale - 1) * (first - other) for other in others), 0 * first)
            x = self.scheduler.step(guided, t, x).prev_sample
        return x


def plain(**how: Any) -> torch.Tensor:
    """What the pipeline itself makes, on one thread."""
    with one_thread():
        return Sequential(**how)()


WAYS: dict[str, dict[str, Any]] = {
    "two calls": {},
    "three calls": {"branches": lambda step: "cus"},
    "two calls of several pictures": {"pictures": 2},
    "texts of two lengths": {"branches": lambda step: "cl"},
    "switched off in the midst": {"branches": lambda step: "c" if 3 <= step < 5 else "cu"},
    "a third call in every other step": {"branches": lambda step: "cus" if step % 2 else "cu"},
}


@pytest.mark.parametrize("way", WAYS)
def test_exact_has_the_bits_of_the_pipeline(way):
    expected = plain(**WAYS[way])
    with hybridiff_compile.optimize(Sequential(**WAYS[way]), mode="exact") as model:
        for _ in range(2):  # how it guides is known the second time
            assert torch.equal(model(), expected)
            assert model.report.ranks == 2
            assert len(model.report.steps) + model.report.unguided == STEPS


def test_all_steps_but_the_first_are_computed_on_both_ranks():
    with hybridiff_compile.optimize(Sequential(), mode="exact") as model:
        model()
        report = model.report
    assert (len(report.steps), report.unguided) == (STEPS - 1, 1)
    own, peer = report.rank_steps
    assert [step.step for step in own] == [step.step for step in peer] != []


def test_each_rank_computes_a_branch():
    with hybridiff_compile.optimize(Sequential(lambda step: "cus"), mode="exact") as model:
        model()
        ((program,),) = (programs.values() for programs in model.programs())
    calls = [str(module.graph).count("call_module[target=denoiser]") for module in program.graphs]
    assert calls == [2, 1]


def test_hybrid_skips_calls_of_both_branches():
    with hybridiff_compile.optimize(Sequential(), mode="hybrid", tolerance=10.0) as model:
        made = model(steps=30)
        phases = model.report.steps_by_phase
    assert phases["forecast"] > 5
    assert made.isfinite().all()
    exact = Sequential()(steps=30)
    assert 0 < (made - exact).abs().max() < 0.5 * exact.abs().max()


def test_hybrid_weighs_by_the_scale_of_guidance():
    """The errors of a larger scale are larger: the weights are read off the scheduler's input."""
    largest = []
    for scale in (1.5, 12.0):
        with hybridiff_compile.optimize(Sequential(), mode="forecast", tau1=4, k=20) as model:
            model(steps=30, scale=scale)
            errors = [s.error for s in model.report.steps if s.error is not None]
            largest.append(max(errors))
    assert largest[1] > 3 * largest[0]


def test_one_rank_skips_steps_too():
    with hybridiff_compile.optimize(Sequential(), 1, mode="hybrid", tolerance=10.0) as model:
        made = model(steps=30)
        assert model.report.steps_by_phase["forecast"] > 5
    exact = Sequential()(steps=30)
    assert 0 < (made - exact).abs().max() < 0.5 * exact.abs().max()


def test_one_rank_is_exact():
    with hybridiff_compile.optimize(Sequential(), 1, mode="exact") as model:
        assert torch.equal(model(), plain())
        assert model.report.ranks == 1


def test_a_model_that_calls_once_is_said_to_have_nothing_to_split(caplog):
    pipe = Sequential(lambda step: "c")
    with caplog.at_level(logging.WARNING), hybridiff_compile.optimize(pipe, mode="exact") as model:
        assert torch.equal(model(), plain(branches=lambda step: "c"))
        assert model.report.ranks == 1
    said = [r.message for r in caplog.records if "nothing to split" in r.message]
    assert len(said) == 1


@pytest.mark.parametrize("gpus", [1, 2])
def test_hybrid_skips_steps_of_a_model_that_calls_once(gpus):
    pipe = Sequential(lambda step: "c")
    with hybridiff_compile.optimize(pipe, gpus, mode="hybrid", tolerance=10.0) as model:
        made = model(steps=30)
        assert model.report.steps_by_phase["forecast"] > 5
    exact = Sequential(lambda step: "c")(steps=30)
    assert 0 < (made - exact).abs().max() < 0.5 * exact.abs().max()


class Skips(toy.Toy):
    """A denoiser with a setting that a guider changes."""

    strength = 1.0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        answer: Any = super().forward(*args, **kwargs)
        return (answer[0] * self.strength,)


def _new_text(pipe: Any, step: int) -> None:
    pipe.text["u"] = pipe.text["u"] * (1 + 0.1 * step)


def _written_text(pipe: Any, step: int) -> None:
    pipe.text["u"].mul_(1 + 0.1 * step)


def _changed_once(pipe: Any, step: int) -> None:
    if step == 4:
        pipe.text["u"] = pipe.text["u"] * 2


def _another_denoiser(pipe: Any, step: int) -> None:
    pipe.unet.strength = 0.5 if step % 2 else 1.0


@pytest.mark.parametrize("mode", ["exact", pytest.param("hybrid", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("act", "says"),
    [
        (_new_text, "given another encoder_hidden_states"),
        (_written_text, "given another encoder_hidden_states"),
        (_changed_once, "given another encoder_hidden_states"),
        (_another_denoiser, "the denoiser"),
    ],
)
def test_what_is_not_as_assumed_is_computed_as_asked(act, says, mode, caplog):
    how: dict[str, Any] = {"act": act, "kind": Skips}
    with (
        caplog.at_level(logging.WARNING),
        hybridiff_compile.optimize(Sequential(**how), mode=mode, **_never(mode)) as model,
    ):
        assert torch.equal(model(), plain(**how))
    assert says in caplog.text


def _never(mode: str) -> dict[str, Any]:
    """Hybrid that extrapolates nothing: then it is exact."""
    return {"tolerance": 1e-9} if mode == "hybrid" else {}


def test_programs_are_made_before_the_first_picture():
    with hybridiff_compile.optimize(Sequential(), mode="exact") as model:
        model.compile(progress=False)
        assert len(model.programs()) == 1
        made = model()
        assert len(model.programs()) == 1
    assert torch.equal(made, plain())


@pytest.mark.parametrize("mode", ["paper", "guided"])
def test_what_pipelines_a_batch_is_serial_and_says_so(mode, caplog):
    with (
        caplog.at_level(logging.WARNING),
        hybridiff_compile.optimize(Sequential(), mode=mode, tau1=2, k=3) as model,
    ):
        assert torch.equal(model(), plain())
        assert model.report.steps_by_phase["serial"] == STEPS - 1
    assert "pipelines a batch of two branches" in caplog.text


def test_verify_compares_with_the_pipeline_itself():
    with hybridiff_compile.optimize(Sequential(), mode="exact") as model:
        expected = model()
        with model.session().here.apart():
            assert torch.equal(model(), expected)


def test_a_package_of_several_calls_is_refused(tmp_path):
    with hybridiff_compile.optimize(Sequential(), mode="exact") as model:
        model()
        with pytest.raises(HybridiffError, match="calls of their own"):
            hybridiff_compile.export(model, tmp_path / "package")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["stage", "regional", "whole"])
@pytest.mark.parametrize("way", ["two calls", "three calls", "texts of two lengths"])
def test_compiled_programs_of_several_calls(scope, way):
    how: dict[str, Any] = {"mode": "exact", "backend": "inductor", "scope": scope}
    with hybridiff_compile.optimize(Sequential(**WAYS[way]), **how) as model:
        made = model()
        assert (model.report.ranks, len(model.report.steps)) == (2, STEPS - 1)
    assert (made - plain(**WAYS[way])).abs().max() < 1e-4


def test_a_run_leaves_none_of_its_tensors_in_the_model():
    pipe = Sequential()
    with hybridiff_compile.optimize(pipe, 1, mode="exact") as model:
        model()
        texts = [weakref.ref(text) for text in pipe.text.values()]
        pipe.text.clear()
        gc.collect()
        assert [ref() for ref in texts] == [None] * len(texts)
