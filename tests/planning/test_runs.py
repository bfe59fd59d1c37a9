from dataclasses import replace
from typing import Any

import pytest

from hybridiff_compile.config import TRANSFORMER_SWITCHING, UNET_SWITCHING
from hybridiff_compile.errors import ConfigError
from hybridiff_compile.ir import Phase
from hybridiff_compile.planning import runs
from hybridiff_compile.planning.cuts import CutPlan
from hybridiff_compile.planning.runs import Times
from hybridiff_compile.planning.solve import Kind

T = Times(
    both=19.0,
    branch=(10.0, 10.5),
    stages=(5.0, 4.8),
    stages_of_both=(9.0, 9.5),
    cut=0.4,
    prediction=0.1,
    own=0.2,
)


def step(phase: Phase, t: Times = T, mode: Any = "paper") -> float:
    return runs.step_seconds(mode, phase, t)


def test_serial_step_ends_with_the_prediction_of_rank_1():
    assert step(Phase.SERIAL) == pytest.approx(10.5 + 0.1 + 0.2)
    assert step(Phase.SERIAL, replace(T, branch=(12.0, 10.5))) == pytest.approx(12.2)


def test_pipelined_step_waits_for_the_slower_way():
    assert step(Phase.PIPELINED) == pytest.approx(5.0 + 0.4 + 0.2)
    assert step(Phase.PIPELINED, replace(T, cut=0.0)) == pytest.approx(5.2)
    uneven = replace(T, stages=(4.0, 6.0))
    assert step(Phase.GUIDED_U, uneven) == pytest.approx(6.0 + 0.1 + 0.2)


def test_drained_step_is_stage_1_alone():
    assert step(Phase.DRAINED) == pytest.approx(4.8 + 0.1 + 0.2)


def test_an_extrapolated_step_takes_nothing():
    assert step(Phase.FORECAST) == 0


def test_asyncdiff_sends_the_features_of_both_branches():
    of = Phase.PIPELINED
    assert step(of, mode="asyncdiff") == pytest.approx(9.0 + 2 * 0.4 + 0.2)
    assert step(of, replace(T, cut=0.2), "asyncdiff") == pytest.approx(9.5 + 2 * 0.1 + 0.2)


def letters(phases: list[Phase]) -> str:
    return "".join("SPUCFD"[phase] for phase in phases)


@pytest.mark.parametrize(
    ("mode", "k", "expected"),
    [
        ("exact", None, "S" * 20),
        ("paper", None, "S" * 6 + "PD" + "S" * 12),
        ("paper", 4, "S" * 6 + "PPPD" + "S" * 10),
        ("guided", None, "S" * 5 + "CUCUCUCUCUC" + "S" * 4),
        ("forecast", None, "S" * 5 + "FS" * 5 + "F" + "S" * 4),
        ("hybrid", None, "S" * 5 + "FFFSFFFSFFF" + "S" * 4),
        ("asyncdiff", None, "S" + "P" * 19),
    ],
)
def test_phases_of_every_mode(mode, k, expected):
    assert letters(runs.phases(mode, UNET_SWITCHING, 20, k)) == expected


def test_steps_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="end at step 56"):
        runs.phases("paper", UNET_SWITCHING, 20, 50)


def test_a_run_adds_up_its_steps():
    phases = [Phase.SERIAL] * 3 + [Phase.PIPELINED, Phase.DRAINED]
    row = runs.row("paper", phases, T, T.both * 5, bytes_sent=7, command="plan", model="x")
    expected = 3 * step(Phase.SERIAL) + step(Phase.PIPELINED) + step(Phase.DRAINED)
    assert row.predicted_seconds == pytest.approx(expected)
    assert row.predicted_speedup == pytest.approx(T.both * 5 / expected)
    assert (row.bytes_sent, row.ranks) == (7, 2)
    assert row.steps_by_phase == {"serial": 3, "pipelined": 2, "forecast": 0}


def test_asyncdiff_warms_up_as_one_device():
    phases = [Phase.SERIAL, Phase.PIPELINED]
    row = runs.row("asyncdiff", phases, T, 2 * T.both, rest=1.0, command="plan", model="x")
    pipelined = step(Phase.PIPELINED, mode="asyncdiff")
    assert row.predicted_seconds == pytest.approx(1.0 + T.both + pipelined)
    assert row.predicted_step_ms_by_phase == pytest.approx(
        {"serial": 1e3 * T.both, "pipelined": 1e3 * pipelined}
    )


@pytest.mark.parametrize(
    ("mode", "phase", "times", "limit"),
    [
        ("exact", Phase.SERIAL, T, "forward 97%, link 1%, driver 2%"),
        (
            "exact",
            Phase.SERIAL,
            replace(T, branch=(11, 9), own=0),
            "forward 100%, link 0%, driver 0%",
        ),
        ("asyncdiff", Phase.SERIAL, T, "forward 100%, link 0%, driver 0%"),
        ("paper", Phase.PIPELINED, T, "stage0 89%, link 7%, driver 4%"),
        (
            "paper",
            Phase.PIPELINED,
            replace(T, cut=0.0, stages=(4, 5)),
            "stage1 94%, link 2%, driver 4%",
        ),
        ("paper", Phase.DRAINED, T, "stage1 94%, link 2%, driver 4%"),
        ("asyncdiff", Phase.PIPELINED, T, "stage0 90%, link 8%, driver 2%"),
        ("asyncdiff", Phase.PIPELINED, replace(T, cut=0.0), "stage1 96%, link 2%, driver 2%"),
    ],
)
def test_what_a_step_waits_for(mode, phase, times, limit):
    assert runs.limited_by(mode, [phase], times) == limit


def cut(*cycles: float) -> CutPlan:
    return CutPlan("x", (1, 1), 1, (cycles[0], cycles[1]))


def test_recommended_settings_are_what_optimize_takes():
    cuts = [cut(5.4, 4.9), cut(5.1, 5.0)]
    kinds = [Kind("paper", 1, 6e-5, 30), Kind("guided", 1, 4e-7, 40), Kind("forecast", 4, 3e-7, 40)]
    best = runs.recommended(50, T, cuts, kinds, budget=1e-4)
    assert best.settings == {"mode": "forecast", "k": 40, "m": 4}
    assert best.speedup == pytest.approx(T.both * 50 / best.seconds)
    assert best.cut == 1
    guided = runs.recommended(50, T, cuts, kinds[:2], budget=1e-5)
    assert guided.settings == {"mode": "guided", "k": 25}
    assert guided.seconds == pytest.approx(25 * step(Phase.SERIAL) + 25 * (5.1 + T.own))
    assert runs.recommended(50, T, cuts, kinds, budget=0.0).settings == {"mode": "exact"}
    without = runs.recommended(50, T, cuts, (), budget=1.0)  # the cut is told all the same
    assert (without.settings, without.cut) == ({"mode": "exact"}, 1)


def test_room_is_what_the_modes_may_switch():
    assert runs.room(UNET_SWITCHING, 50) == {"paper": 35, "guided": 40, "forecast": 40}
    assert runs.room(TRANSFORMER_SWITCHING, 20) == {"paper": 4, "guided": 11, "forecast": 11}
