"""What a report says of a run, in a line and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from hybridiff_compile.ir import Phase
from hybridiff_compile.runtime.report import RankStep, RunReport, StepRecord
from hybridiff_compile.runtime.timeline import Bar, bars

S, P, F, D, U, C = (
    Phase.SERIAL,
    Phase.PIPELINED,
    Phase.FORECAST,
    Phase.DRAINED,
    Phase.GUIDED_U,
    Phase.GUIDED_C,
)


def report(phases: Sequence[Phase], errors: Sequence[float | None] = (), **known: Any) -> RunReport:
    errors = [*errors, *[None] * (len(phases) - len(errors))]
    steps = [
        StepRecord(i, phase, phase.kind, "", 0.5, None, error)
        for i, (phase, error) in enumerate(zip(phases, errors, strict=True))
    ]
    given = {"mode": "hybrid", "ranks": 2, "tau1": None, "tau2": None, "bytes_sent": 0}
    return RunReport(**{**given, "worker_rss_mb": (), "steps": tuple(steps), **known})


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (report([S] * 3, mode="exact"), "3 steps on 2 ranks: 3 computed"),
        (report([S], ranks=1), "1 step on 1 rank: 1 computed"),
        (
            report([S, S, F, F, S], [None, None, None, None, 0.314], tolerance=0.4),
            "5 steps on 2 ranks: 3 computed, 2 extrapolated, each expected to be off by 0.4 at "
            "most; 1.7x fewer forwards; the next step would have been off by 0.31 at most",
        ),
        (report([S, S, S], [None, None, 0.7], tolerance=0.4), "3 steps on 2 ranks: 3 computed"),
        (
            report([S, P, P, D], mode="paper"),
            "4 steps on 2 ranks: 1 computed, 3 pipelined; 1.6x fewer forwards",
        ),
        (
            report([S, S], unguided=1),
            "2 steps on 2 ranks: 2 computed; 1 denoiser call left to the pipeline",
        ),
        (report([], unguided=4), "4 denoiser calls left to the pipeline"),
        (report([]), "no denoiser call was taken over"),
    ],
)
def test_a_report_is_one_line_of_what_is_known(made: RunReport, says: str) -> None:
    assert str(made) == says


@pytest.mark.parametrize(
    ("phases", "mode", "times"),
    [
        ([S, S], "exact", 1.0),
        ([S, F, F, F], "forecast", 4.0),
        ([S, P], "paper", 4 / 3),
        ([S, P, D, S], "paper", 8 / 6),
        ([S, C, U, F], "guided", 2.0),
        ([S, P, P], "asyncdiff", 1.0),  # both branches in one batch
        ([], "hybrid", 1.0),
    ],
)
def test_forwards_are_counted_against_both_branches_at_each_step(
    phases: list[Phase], mode: str, times: float
) -> None:
    assert report(phases, mode=mode).fewer_forwards == pytest.approx(times)


def test_the_largest_error_is_of_those_seen_after_a_step_that_was_not_computed() -> None:
    phases = [S, S, F, S, S, C, U]
    assert report(phases, [None, 9.0, None, 0.2, 9.0, None, 0.3]).largest_error == 0.3
    assert report(phases, [None, 9.0, None, None, 9.0]).largest_error is None


def ranks(*of_each: Sequence[tuple[int, float, float | None, float]]) -> Any:
    return tuple(tuple(RankStep(*step) for step in steps) for steps in of_each)


def test_bars_are_what_each_rank_did_and_when() -> None:
    own = [(0, 10.0, None, 11.0), (2, 11.5, 12.0, 12.5)]
    other = [(0, 10.25, 10.75, 11.0), (2, 11.5, 12.0, 12.5)]
    assert bars(report([S, F, P, F], rank_steps=ranks(own, other))) == [
        Bar(0, 0.0, 1.0, "computed", 0),
        Bar(0, 1.0, 1.0, "waiting for the other rank"),
        Bar(0, 1.5, 2.0, "pipelined", 2),
        Bar(0, 2.0, 2.5, "waiting for the other rank"),
        Bar(1, 0.25, 0.75, "computed", 0),
        Bar(1, 0.75, 1.0, "waiting for the other rank"),
        Bar(1, 1.5, 2.0, "pipelined", 2),
        Bar(1, 2.0, 2.5, "waiting for the other rank"),
        Bar(0, 1.0, 1.5, "extrapolated"),
        Bar(0, 2.5, 3.0, "extrapolated"),
    ]


def test_clocks_of_two_hosts_are_not_compared() -> None:
    made = report([S], rank_steps=ranks([(0, 10.0, None, 11.0)], [(0, 500.0, None, 501.0)]))
    assert [(bar.begin, bar.end) for bar in bars(made) if bar.step == 0] == [(0.0, 1.0)] * 2


def test_a_step_whose_answer_was_not_used_is_not_drawn() -> None:
    own = [(0, 0.0, None, 1.0), (1, 1.0, None, 2.0)]
    assert {bar.step for bar in bars(report([S], rank_steps=ranks(own, own)))} == {0, None}
    assert max(bar.end for bar in bars(report([S], rank_steps=ranks(own, own)))) == 1.0


def test_a_rank_that_tells_no_steps_leaves_those_of_the_driver() -> None:
    made = report([S], rank_steps=ranks([(0, 0.0, None, 1.0)], []))
    assert bars(made) == [Bar(0, 0.0, 0.5, "computed", 0)]


def test_one_ranks_steps_are_drawn_end_to_end() -> None:
    assert bars(report([S, F], ranks=1)) == [
        Bar(0, 0.0, 0.5, "computed", 0),
        Bar(0, 0.5, 1.0, "extrapolated", 1),
    ]


def test_the_picture_has_errors_and_the_tolerance_where_they_are_known(tmp_path: Any) -> None:
    plain = report([S, P], mode="paper").plot()
    assert len(plain.axes) == 1
    made = report([S, S, F, S], [None, 0.1, None, 0.2], tolerance=0.4)
    figure: Any = made.plot()
    line, errors = figure.axes
    shown = {(x, y) for drawn in errors.lines for x, y in drawn.get_xydata() if y != 0.4}
    assert shown == {(1.0, 0.1), (3.0, 0.2)}
    assert any(list(drawn.get_ydata()) == [0.4, 0.4] for drawn in errors.lines)
    assert [patch.get_width() for patch in line.patches] == [0.5] * 4
    assert figure.get_suptitle() == f"hybrid: {made}"
    figure.savefig(tmp_path / "run.png")


def test_a_run_without_steps_has_an_empty_picture(tmp_path: Any) -> None:
    report([], unguided=4).plot().savefig(tmp_path / "run.png")
