"""Plans in words and figures, of a small one with times that were made up."""

import re
from dataclasses import replace

import pytest

import hybridiff_compile
from hybridiff_compile.bench.figures import Row
from hybridiff_compile.planning import devices, predict, report, runs
from hybridiff_compile.planning.report import Plan
from hybridiff_compile.planning.runs import Times

#: A link so slow that stage0 waits for it; one device's batched call gains by itself.
TIMES = Times(
    both=1.6,
    branch=(1.0, 1.0),
    stages=(0.5, 0.5),
    stages_of_both=(0.8, 0.8),
    cut=0.25,
    prediction=0.01,
)


@pytest.fixture(scope="module")
def plan() -> Plan:
    first = hybridiff_compile.plan("tiny-sd3", num_inference_steps=20, k=3)
    return predict.of_subject(first.subject, TIMES, devices.link("pcie3"), k=3)


def test_sentences_say_the_ceiling(plan: Plan) -> None:
    said = "\n".join(report.sentences(plan))
    assert "takes 1.60 times as long for both branches as for one" in said
    assert "the most that exact can gain. It gains 1.58." in said
    assert "activations take 0.01 GB on one device, and 0.01 and 0.01 GB on two" in said
    assert "twice a step" not in said
    assert "it does not fit" not in said


def test_what_does_not_fit_or_cannot_run_yet_is_said(plan: Plan) -> None:
    video = replace(
        plan,
        device="rtx3090",
        memory=(10**9, 30 * 10**9, 1),
        subject=replace(plan.subject, batched=False),
    )
    said = "\n".join(report.sentences(video))
    assert "take 1.00 GB on one device, and 30.00 and 0.00 GB on two" in said
    assert "rtx3090 has 24 GB: it does not fit." in said
    assert "calls its denoiser twice a step" in said
    assert "optimize(pipe, gpus=2" not in said


def test_two_that_fit_where_one_does_not_are_said_to(plan: Plan) -> None:
    large = replace(plan, device="rtx3090", memory=(30 * 10**9, 1, 1))
    said = "\n".join(report.sentences(large))
    assert "take 30.00 GB on one device" in said
    assert "rtx3090 has 24 GB: one device cannot run it, two can." in said


def test_two_devices_that_do_not_pay_are_not_recommended(plan: Plan) -> None:
    slow = replace(plan.recommended, settings={"mode": "exact"}, speedup=0.5)
    said = "\n".join(report.sentences(replace(plan, recommended=slow)))
    assert "Two devices do not pay" in said
    assert "optimize(pipe, gpus=2, mode='exact'), takes 2.00 times as long as one" in said
    assert "Fastest within" not in said
    told = "\n".join(report.sentences(plan))
    source = "by the errors of phases in 20 steps of tiny-sd3"
    assert f"Fastest within 40 dB of one device ({source}):" in told
    another = replace(plan, subject=replace(plan.subject, name="sd3-medium"))
    assert f"({source}, not of this model)" in "\n".join(report.sentences(another))
    unknown = replace(plan, errors=replace(plan.errors, steps=None))
    assert "(as no run of so few steps was measured on tiny-sd3)" in "\n".join(
        report.sentences(unknown)
    )


def test_what_is_recommended_takes_as_long_as_the_same_run_in_the_table(plan: Plan) -> None:
    loose = predict.of_subject(plan.subject, TIMES, devices.link("pcie3"), k=3, psnr_db=20)
    run = next(r for r in plan.rows if r.mode == "hybrid")
    assert loose.recommended.seconds == pytest.approx(run.predicted_seconds)
    assert plan.recommended.seconds > (
        run.predicted_seconds or 0
    )  # in 20 steps that does not keep 40 dB


def test_rows_are_of_the_vocabulary_and_agree_with_the_runs(plan: Plan) -> None:
    rows = plan.rows
    assert [r.mode for r in rows] == ["one-device", *runs.MODES]
    assert (rows[0].predicted_seconds, rows[0].ranks) == (20 * 1.6, 1)
    for row in rows[1:]:
        assert Row.model_validate_json(row.model_dump_json()) == row
        assert sum((row.steps_by_phase or {}).values()) == 20
        assert (row.device, row.link, row.batch) == ("here", "pcie3", 1)
    paper = rows[2]
    assert paper.predicted_step_ms_by_phase == pytest.approx({"serial": 1010, "pipelined": 750})
    assert paper.limited_by == "forward 99%, link 1%, driver 0%"


def test_tables_show_every_mode_and_cut(plan: Plan) -> None:
    shown = str(plan)
    for row in plan.rows:
        assert f"\n  {row.mode} " in shown
    for cut in plan.cuts:
        assert f"\n  {cut.where} " in shown
    assert re.search(r"\n  hybrid +9 \+ 11 +11 ", shown)  # two of the 11 are computed
    assert re.search(r"\n  paper +17 \+ 3 +20 +1010.0 / 750.0 .* 0%", shown)
    assert "paper s" not in shown  # this is not the paper's setting
    assert max(map(len, shown.split("\n\n")[1].splitlines())) <= report.WIDTH
