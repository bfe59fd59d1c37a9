"""Denoisers that torch.export cannot follow: each rank calls the module itself."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

import hybridiff_compile
from hybridiff_compile.errors import ConfigError
from hybridiff_compile.runtime import transfer
from tests import toy
from tests.reference import one_thread

STEPS = 4

Answer = tuple[torch.Tensor, ...]


class ByMask(nn.Module):
    """Reads as many words as its mask says, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = toy.seeded(toy.Toy)

    def forward(self, x: torch.Tensor, timestep: Any, text: torch.Tensor, mask: Any) -> Answer:
        rows = []
        for i, count in enumerate(mask.sum(1).tolist()):
            words = text[i : i + 1, :count] if count > 1 else -text[i : i + 1]
            rows += self.unet(x[i : i + 1], timestep, words, return_dict=False)
        return (torch.cat(rows),)


class ByPicture(ByMask):
    """Decides by what it sees."""

    def forward(self, x: torch.Tensor, timestep: Any, text: torch.Tensor, mask: Any) -> Answer:
        return super().forward(x, timestep, -text if x.mean() > 0 else text, mask)


class Tables(ByMask):
    """Makes a table for each number of words, when it first meets it."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[int, torch.Tensor] = {}

    def forward(self, x: torch.Tensor, timestep: Any, text: torch.Tensor, mask: Any) -> Answer:
        (count,) = {int(row.sum()) for row in mask}
        if count not in self.tables:
            self.tables[count] = torch.full((6,), 0.1 * count)
        return super().forward(x, timestep, text + self.tables[count], mask)


class Draws(ByMask):
    """Draws a random number."""

    def forward(self, x: torch.Tensor, timestep: Any, text: torch.Tensor, mask: Any) -> Answer:
        return super().forward(x, timestep, text + torch.rand(()), mask)


class Local(ByMask):
    """Has a function that is nowhere to be imported from."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = lambda text: 2 * text

    def forward(self, x: torch.Tensor, timestep: Any, text: torch.Tensor, mask: Any) -> Answer:
        return super().forward(x, timestep, self.scale(text), mask)


class OfScript(ByMask):
    """Is defined in the script that was started."""


OfScript.__module__ = "__main__"


class Elsewhere(ByMask):
    """Does something else in another process."""

    def __init__(self) -> None:
        super().__init__()
        self.home = os.getpid()

    @property
    def is_home(self) -> bool:
        return self.home == os.getpid()


class Breaks(Elsewhere):
    """It breaks there."""

    def forward(self, x: torch.Tensor, timestep: Any, text: torch.Tensor, mask: Any) -> Answer:
        if not self.is_home:
            raise LookupError("this is another process")
        return super().forward(x, timestep, text, mask)


class Strays(Elsewhere):
    """It computes another thing there."""

    def forward(self, x: torch.Tensor, timestep: Any, text: torch.Tensor, mask: Any) -> Answer:
        return super().forward(x, timestep, text if self.is_home else 2 * text, mask)


class Guides:
    """By one batch, or by a call a branch: a prompt of several words, and others of fewer."""

    def __init__(self, kind: type[nn.Module], branches: int = 2) -> None:
        self.transformer: Any = kind()
        self.scheduler: Any = DDIMScheduler(beta_schedule="scaled_linear")
        self.branches = branches

    @torch.no_grad()
    def __call__(self, words: int = 3, *, together: bool = False, steps: int = STEPS) -> Any:
        g = torch.Generator().manual_seed(0)
        x, n = torch.randn(1, 4, 8, 8, generator=g), self.branches
        texts = torch.randn(n, 3, 6, generator=g)
        mask = (torch.arange(3) < torch.tensor([[words], *[[1]] * (n - 1)])).long()
        self.scheduler.set_timesteps(steps)
        for t in self.scheduler.timesteps:
            rows = [torch.cat([x] * n)] if together else [x] * n
            size = n if together else 1
            pairs = zip(rows, texts.split(size), mask.split(size), strict=True)
            made = [self.transformer(x, t / 500.0, text, m)[0] for x, text, m in pairs]
            c, *others = torch.cat(made).chunk(n)
            guided = c + sum(3.0 * (c - u) for u in others)
            x = self.scheduler.step(guided, t, x).prev_sample
        return x


def plain(*how: Any, **call: Any) -> torch.Tensor:
    """What the pipeline itself makes, on one thread."""
    with one_thread():
        return Guides(*how)(**call)


@pytest.mark.parametrize("branches", [2, 3])
@pytest.mark.parametrize("kind", [ByMask, ByPicture])
@pytest.mark.parametrize("together", [False, True])
def test_a_denoiser_that_decides_by_values_runs_on_two_ranks(kind, together, branches):
    with hybridiff_compile.optimize(Guides(kind, branches), mode="exact") as model:
        for words in (3, 1, 3):
            expected = plain(kind, branches, words=words, together=together)
            assert torch.equal(model(words, together=together), expected)
            assert model.report.ranks == 2
            assert len(model.report.steps) >= STEPS - (not together)
            share = [len(steps) for steps in model.report.rank_steps]
            assert share == [len(model.report.steps)] * 2


def test_tables_that_its_calls_make_are_no_change_of_it(caplog):
    pipe = Guides(Tables)
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        for words in (3, 2, 3, 2):
            assert torch.equal(model(words), plain(Tables, words=words))
            assert (model.report.ranks, model.report.unguided) == (2, 1)
            pipe.transformer.tables.clear()  # by the user: it is captured again
    assert "was changed" not in caplog.text


def test_all_masks_have_one_program(caplog):
    caplog.set_level("INFO")
    with hybridiff_compile.optimize(Guides(ByMask), mode="exact") as model:
        for words in (3, 2, 3):
            model(words)
    assert caplog.text.count("captured ByMask") == 1
    assert "both ranks call the denoiser as it is" in caplog.text


def test_three_branches_are_shared_out():
    with hybridiff_compile.optimize(Guides(ByMask, 3), mode="exact") as model:
        model()
        (entry,) = model.session().entries
    (program,) = entry.programs.values()
    calls = [[n for n in g.graph.nodes if n.op == "call_module"] for g in program.graphs]
    assert [len([n for n in own if "eps" in n.name]) for own in calls] == [2, 1]


def test_weights_that_are_written_reach_the_other_rank():
    pipe, other = Guides(ByMask), Guides(ByMask)
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        model()
        for one in (pipe, other):
            with torch.no_grad():
                one.transformer.unet.conv_out.weight.mul_(1.5)
        with one_thread():
            expected = other()
        assert torch.equal(model(), expected)
        assert model.report.ranks == 2


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Draws, "draws random numbers|another thing each time"),
        (Local, "lambda"),
        (OfScript, "OfScript is defined in the script itself"),
        (Breaks, "LookupError: this is another process"),
        (Strays, "a relative difference of"),
    ],
)
def test_one_that_another_process_does_not_bear_runs_on_one_rank(kind, reason, together, caplog):
    with hybridiff_compile.optimize(Guides(kind), mode="exact") as model:
        for words in (3, 2):
            torch.manual_seed(7)
            made = model(words, together=together)
            torch.manual_seed(7)
            assert torch.equal(made, plain(kind, words=words, together=together))
            assert model.report.ranks == 1
    assert re.search(reason, caplog.text)
    assert caplog.text.count("one rank runs") == 1


def test_it_carries_no_other_model_to_the_rank(monkeypatch, caplog):
    monkeypatch.setattr(transfer, "_MOST_BYTES", 1000)
    pipe = Guides(ByMask)
    pipe.transformer.table = (torch.zeros(300),)
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        assert torch.equal(model(), plain(ByMask))
        assert model.report.ranks == 1
    assert "of tensors that are no weights of its own" in caplog.text


def test_other_modes_say_what_they_need(caplog):
    with hybridiff_compile.optimize(Guides(ByMask), mode="paper", tau1=1, k=2) as model:
        assert torch.equal(model(together=True), plain(ByMask, together=True))
        assert model.report.ranks == 2
    assert "nothing is pipelined" in caplog.text
    assert "ByMask cannot be exported" in caplog.text


def test_hybrid_skips_steps_of_it():
    with hybridiff_compile.optimize(Guides(ByMask), mode="hybrid", tolerance=10.0) as model:
        model(steps=20)
        assert model.report.steps_by_phase["forecast"] > 5


@pytest.mark.parametrize("form", ["aot", "onnx"])
def test_it_is_not_packaged(tmp_path, form):
    with hybridiff_compile.optimize(Guides(ByMask), mode="exact") as model:
        model(together=True)
        with pytest.raises(ConfigError, match="there is no graph to package"):
            hybridiff_compile.export(model, tmp_path / "new", format=form)


@pytest.mark.parametrize("scope", ["stage", "regional", "whole"])
def test_nothing_of_it_is_compiled(scope, caplog):
    how = {"mode": "exact", "backend": "inductor", "scope": scope}
    with hybridiff_compile.optimize(Guides(ByMask), **how) as model:
        assert torch.equal(model(), plain(ByMask))
        assert model.report.ranks == 2
    assert "nothing of it is compiled: ByMask cannot be exported" in caplog.text
