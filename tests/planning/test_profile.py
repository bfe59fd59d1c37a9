"""What a profile says of times that were made up, and of a real pipeline."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console

import hybridiff_compile
from hybridiff_compile.bench import models
from hybridiff_compile.errors import ConfigError
from hybridiff_compile.ir import Phase
from hybridiff_compile.planning import devices, profile_report, runs
from hybridiff_compile.planning.profile import LEAST_STEPS, Profile, profile
from hybridiff_compile.planning.runs import Times
from tests import pipelines

#: In twelfths of a second: a slow link, uneven stages, a batched call that gains.
T = Times(
    both=1.6,
    branch=(1.0, 1.0),
    stages=(0.4, 0.6),
    stages_of_both=(0.7, 0.9),
    cut=0.3,
    prediction=0.05,
    own=0.01,
)
PHASES = (*[Phase.SERIAL] * 3, Phase.PIPELINED, Phase.PIPELINED, Phase.DRAINED)


@pytest.fixture(scope="module")
def made_up() -> Profile:
    subject = hybridiff_compile.plan("tiny-sd3", num_inference_steps=20).subject
    return Profile(
        subject=subject,
        times=T,
        seconds=10.6,
        denoiser_seconds=9.6,
        link=devices.Link(devices.HERE, rate=2e9, latency=1e-4),
        phases=PHASES,
        measured={Phase.SERIAL: 1.1, Phase.PIPELINED: 0.8, Phase.DRAINED: 0.7},
    )


def test_predicted_steps_wait_for_the_slowest_chain(made_up: Profile) -> None:
    expected = {Phase.SERIAL: 1.06, Phase.PIPELINED: 0.71, Phase.DRAINED: 0.66}
    assert {p: runs.step_seconds("paper", p, T) for p in PHASES} == pytest.approx(expected)


def test_losses_add_up_to_the_picture(made_up: Profile) -> None:
    found = profile_report.losses(made_up)
    assert found == pytest.approx(
        {
            profile_report.WORK: 3 * 0.8 + 3 * 0.4,
            profile_report.BATCHING: 3 * 0.2 + 3 * 0.1,
            profile_report.BALANCE: 3 * 0.1,
            profile_report.LINK: 3 * 0.05 + 2 * 0.1 + 0.05,
            profile_report.OWN: 6 * 0.01,
            profile_report.REST: 1.0,
        }
    )
    assert sum(found.values()) == pytest.approx(1.0 + 3 * 1.06 + 2 * 0.71 + 0.66)


def test_sentences_name_the_ceiling_and_the_greatest_loss(made_up: Profile) -> None:
    said = "\n".join(profile_report.sentences(made_up))
    assert "6 steps in 10.60 s; its denoiser takes 90.6% of that" in said
    assert "makes 1.83 times" in said
    assert "T(2B)/T(B) is 1.60" in said
    assert "exact 1.44, the paper's mode with 3 of 6 steps pipelined 1.69" in said
    assert "holds it back most is encoders, scheduler and VAE: 16.0% of the picture" in said
    assert "Nothing was run on two ranks" not in said


def printed(profile: Profile) -> str:
    with (console := Console(width=150)).capture() as captured:
        profile_report.show(profile, console, "quick: less")
    return captured.get()


def test_tables_hold_the_parts_the_prediction_and_where_the_time_goes(made_up: Profile) -> None:
    shown = printed(made_up)
    assert "20 steps; link (measured): 2000 MB/s after 100 us\n" in shown
    assert re.search(r"\n  serial +1000.00 +1000.00 +50.00 +1060.00 +1100.00 +-4% ", shown)
    assert re.search(r"\n  pipelined +400.00 +600.00 +300.00 +710.00 +800.00 +-11% ", shown)
    assert re.search(r"\n  the last pipelined +- +600.00 +50.00 +660.00 +700.00 +-6% ", shown)
    assert re.search(r"\n  the link +0.400 +6.4% ", shown)
    assert re.search(r"\n  the picture +6.260 +100.0% ", shown)
    assert "quick: less" in shown


def test_a_stated_link_is_said_to_be_one(made_up: Profile) -> None:
    stated = replace(made_up, link=devices.link("pcie4"), measured={})
    shown = printed(stated)
    assert "link (pcie4, stated): 24000 MB/s after 20 us" in shown
    assert "Nothing was run on two ranks" in shown
    assert re.search(r"\n  serial .* 1060.00 +- +- ", shown)
    assert profile_report.rows(stated)[2].step_ms_by_phase is None


def test_rows_hold_prediction_and_measurement_side_by_side(made_up: Profile) -> None:
    one, exact, paper = profile_report.rows(made_up)
    assert one.denoiser_share == pytest.approx(9.6 / 10.6)
    assert exact.predicted_seconds == pytest.approx(1.0 + 6 * 1.06)
    assert paper.predicted_speedup == pytest.approx(10.6 / 6.26)
    assert paper.step_ms_by_phase == pytest.approx({"serial": 1100, "pipelined": 800})
    assert paper.predicted_step_ms_by_phase == pytest.approx({"serial": 1060, "pipelined": 710})
    assert paper.steps_by_phase == {"serial": 3, "pipelined": 3, "forecast": 0}


def test_a_pipeline_is_measured_and_left_as_it_was() -> None:
    pipe = pipelines.shallow()
    before, state = dict(vars(pipe.transformer)), torch.get_rng_state()
    call = models.call_settings("tiny-sd3")
    found = profile(pipe, num_inference_steps=LEAST_STEPS, rounds=1, **call)
    assert vars(pipe.transformer) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert 0 < found.denoiser_seconds < found.seconds
    assert [p.name[0] for p in found.phases] == list("SSSPPDSSS")
    assert set(found.measured) == set(found.phases) == set(PHASES)
    times = found.times
    assert min(*times.branch, *times.stages, times.cut, times.prediction) > 0
    # A stage is part of a branch, and a branch is part of the batched call.
    assert sum(times.stages) < 2 * max(times.branch) < 4 * times.both
    assert found.link.name == "here"
    assert times.cut > found.link.latency


def test_a_stated_link_needs_no_second_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    pipe = pipelines.shallow()
    call = {**models.call_settings("tiny-sd3"), "num_inference_steps": LEAST_STEPS, "rounds": 1}
    with pytest.raises(ConfigError, match="no second device here to measure it to; state one of"):
        profile(pipe, **call)
    found = profile(pipe, link="nvlink", **call)
    assert found.measured == {}
    assert [p.name[0] for p in found.phases] == list("SSSPPDSSS")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num_inference_steps": 8}, "steps=8 must be at least 9"),
        ({"rounds": 0}, "rounds=0 must be at least 1"),
        ({"link": "usb"}, "link='usb' is unknown"),
    ],
)
def test_what_cannot_be_measured_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        profile(models.load("tiny-sd3"), **asked)


def test_a_plan_of_what_is_here_projects_each_ranks_programs() -> None:
    found = hybridiff_compile.plan("tiny-sd3", device="here", link="nvlink", num_inference_steps=20)
    assert (found.device, found.link) == ("here", "nvlink")
    t = found.times
    assert t.cut == pytest.approx(devices.link("nvlink").seconds(found.cuts[found.chosen].crossing))
    assert min(t.both, *t.branch, *t.stages) > 0
    row = {r.mode: r for r in found.rows}
    serial = max(t.branch[0], t.branch[1] + t.prediction) + t.own
    assert row["exact"].predicted_seconds == pytest.approx(20 * serial)


def test_what_has_no_weights_cannot_be_measured() -> None:
    with pytest.raises(ConfigError, match="an architecture has no weights; pass a pipeline"):
        hybridiff_compile.plan("sdxl", device="here")
