"""Bytes that a plan reads off the programs, against those that real ranks send."""

import functools
from typing import Any

import pytest

import hybridiff_compile
from hybridiff_compile.bench import models
from hybridiff_compile.ir import Phase
from hybridiff_compile.passes import build_programs
from hybridiff_compile.planning import runs, traffic
from hybridiff_compile.planning.subject import Subject, first_call, of_call
from tests import pipelines, toy

SWITCHED = {"tau1": 2, "k": 3}
STEPS = 6


def call_of(name: str) -> dict[str, Any]:
    return {**models.call_settings(name), "num_inference_steps": STEPS}


@functools.cache
def planned(name: str) -> Subject:
    """Traced by itself, on a pipeline that nothing has run."""
    pipe = models.load(name)
    return of_call(pipe, first_call(pipe, call_of(name)), STEPS, name)


@pytest.mark.parametrize(
    ("name", "mode", "how"),
    [
        pytest.param("sdxl-small", "paper", SWITCHED, marks=pytest.mark.slow),
        pytest.param("tiny-sdxl", "exact", {}, marks=pytest.mark.slow),
        pytest.param("tiny-sdxl", "guided", SWITCHED, marks=pytest.mark.slow),
        ("tiny-sd3", "paper", SWITCHED),
        pytest.param("tiny-sd3", "forecast", SWITCHED, marks=pytest.mark.slow),
    ],
)
def test_a_run_sends_that_many_bytes(name: str, mode: Any, how: dict[str, Any]) -> None:
    pipe: Any = models.load(name)
    pipe.set_progress_bar_config(disable=True)
    with hybridiff_compile.optimize(pipe, mode=mode, **how) as model:
        for _ in range(2):  # the second one sends nothing that only a first call does
            model(pipelines.PROMPT, output_type="latent", **call_of(name))
        report = model.report
        (entry,) = model.session().entries
    subject = planned(name)
    phases = [step.phase for step in report.steps]
    found = traffic.picture_bytes(entry.programs, phases, subject.changing, entry.key)
    assert found == report.bytes_sent
    # The planner's own programs are those that ran, so it need not run anything to know.
    own = build_programs(subject.captured.program, mode)
    assert traffic.picture_bytes(own, phases, subject.changing, entry.key) == found


@pytest.mark.slow
def test_a_run_of_both_branches_in_a_batch_sends_about_as_many() -> None:
    name = "sdxl-small"
    pipe: Any = models.load(name)
    pipe.set_progress_bar_config(disable=True)
    with hybridiff_compile.optimize(pipe, mode="asyncdiff") as model:
        model(pipelines.PROMPT, output_type="latent", **call_of(name))
        report = model.report
    subject = planned(name)
    own = build_programs(subject.captured.program, "paper")
    phases = runs.phases("asyncdiff", subject.family, STEPS)
    assert [step.phase for step in report.steps] == phases
    assert traffic.batched_bytes(own, phases) == pytest.approx(report.bytes_sent, rel=0.05)


CHANGING = ("sample_u", "sample_c", "timestep")
PAPER = build_programs(toy.captured().program, "paper")


def test_embeddings_are_fed_once_and_the_cut_when_the_pipeline_begins() -> None:
    s, p, d = Phase.SERIAL, Phase.PIPELINED, Phase.DRAINED
    own = ["encoder_hidden_states_c", "added_text_embeds_c"]
    assert traffic.fed_in(PAPER, [s, s, p, p, d, s, d], CHANGING) == [
        ["timestep", "sample_c", *own],
        ["timestep", "sample_c"],
        ["timestep", "cut"],
        ["timestep"],
        ["timestep"],
        ["timestep", "sample_c"],
        ["timestep", "cut"],
    ]


def test_bytes_of_a_step_are_those_of_its_links() -> None:
    prediction, cut = 4 * 8 * 8 * 4, 2 * 8 * 8 * 8 * 4
    both = {phase: [traffic.link_bytes(PAPER[phase], rank) for rank in range(2)] for phase in PAPER}
    assert both == {
        Phase.SERIAL: [0, prediction],
        Phase.PIPELINED: [cut, prediction],
        Phase.DRAINED: [0, prediction],
    }


def test_an_extrapolated_step_sends_nothing() -> None:
    exact = build_programs(toy.captured().program, "exact")
    s, f = Phase.SERIAL, Phase.FORECAST
    assert traffic.fed_in(exact, [s, f, s], CHANGING)[1:] == [[], ["timestep", "sample_c"]]
    two = traffic.picture_bytes(exact, [s, s], CHANGING)
    assert traffic.picture_bytes(exact, [s, f, s], CHANGING) == two
    assert traffic.picture_bytes(exact, [s], CHANGING) < two
