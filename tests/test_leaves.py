"""Denoisers that torch.export cannot follow: each rank calls the module itself."""

from __future__ import annotations

import re

import pytest
import torch

import hybridiff_compile
from hybridiff_compile.errors import CaptureError, ConfigError
from hybridiff_compile.runtime import transfer
from tests import leaves
from tests.leaves import (
    STEPS,
    Breaks,
    ByMask,
    ByPicture,
    Counts,
    CountsElsewhere,
    CountsInBuffer,
    Draws,
    DrawsLate,
    Fails,
    Flagged,
    Grows,
    Guides,
    Local,
    OfScript,
    Renews,
    Strays,
    Tables,
    plain,
)
from tests.reference import one_thread


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


@pytest.mark.parametrize("gpus", [1, 2])
@pytest.mark.parametrize("together", [False, True])
def test_a_table_that_is_made_again_at_each_call_is_no_change(gpus, together, caplog):
    with hybridiff_compile.optimize(Guides(Renews), mode="exact", gpus=gpus) as model:
        for words in (3, 2):
            expected = plain(Renews, words=words, together=together)
            assert torch.equal(model(words, together=together), expected)
            assert model.report.unguided == (0 if together else 1)
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


@pytest.mark.parametrize("kind", [Counts, CountsElsewhere, DrawsLate, Grows])
def test_what_it_does_late_makes_no_wrong_picture(kind, caplog):
    pipe, own = Guides(kind), Guides(kind)
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        for seed in range(2):
            torch.manual_seed(seed)
            made = model(steps=8)
            torch.manual_seed(seed)
            with one_thread():
                assert torch.equal(made, own(steps=8))
    assert "but did not bear it" in caplog.text


def test_what_cannot_be_put_back_is_an_error():
    pipe, says = Guides(CountsInBuffer), r"\(CountsInBuffer.*seen\), which cannot be put back"
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        with pytest.raises(CaptureError, match=says):
            model(steps=8)
        pipe.transformer.seen.zero_()
        assert torch.equal(model(steps=8), plain(CountsInBuffer, steps=8))
        assert model.report.ranks == 1


@pytest.mark.parametrize("kind", [Counts, CountsInBuffer])
def test_one_device_too_makes_no_wrong_picture_of_what_it_does_late(kind, caplog):
    with hybridiff_compile.optimize(Guides(kind), 1, mode="exact") as model:
        assert torch.equal(model(steps=8), plain(kind, steps=8))  # by the pipeline's own calls
    assert "one rank runs" in caplog.text
    pipe, own = Guides(kind), Guides(kind)
    with hybridiff_compile.optimize(pipe, 1, mode="exact") as model:
        with pytest.raises(CaptureError, match="that one is lost, the next ones"):
            model(steps=8, together=True)  # by calls of one part each
        own.transformer.load_state_dict(pipe.transformer.state_dict())
        own.transformer.count = pipe.transformer.count
        with one_thread():
            expected = own(steps=8, together=True)
        assert torch.equal(model(steps=8, together=True), expected)


def test_an_error_of_it_is_the_user_s_on_either_rank():
    with hybridiff_compile.optimize(Guides(Fails), mode="exact") as model:
        with pytest.raises(ValueError, match="no such mask"):
            model(steps=8)
        with pytest.raises(ValueError, match="no such mask"):
            model(steps=8)


@pytest.mark.parametrize(("where", "name"), [(leaves, "FLAG"), (Flagged, "factor")])
def test_settings_of_modules_and_classes_reach_the_other_rank(where, name, monkeypatch):
    for value in (3.0, 5.0):
        monkeypatch.setattr(where, name, value)
        with hybridiff_compile.optimize(Guides(Flagged), mode="exact") as model:
            for last in (value, 2 * value):
                monkeypatch.setattr(where, name, last)
                assert torch.equal(model(steps=8), plain(Flagged, steps=8))
                assert model.report.ranks == 2


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
    assert "no repeated blocks" not in caplog.text
