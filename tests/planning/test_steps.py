from dataclasses import replace

import pytest

from hybridiff_compile.planning import steps
from hybridiff_compile.planning.steps import Times

T = Times(
    both=19.0,
    branch=(10.0, 10.5),
    stages=(5.0, 4.8),
    stages_of_both=(9.0, 9.5),
    cut=0.4,
    prediction=0.1,
    own=0.2,
)


def test_serial_step_ends_with_the_prediction_of_rank_1():
    assert steps.serial(T) == pytest.approx(10.5 + 0.1 + 0.2)
    assert steps.serial(replace(T, branch=(12.0, 10.5))) == pytest.approx(12.2)


def test_pipelined_step_waits_for_the_slower_way():
    assert steps.pipelined(T) == pytest.approx(5.0 + 0.4 + 0.2)
    assert steps.pipelined(replace(T, cut=0.0)) == pytest.approx(5.2)
    assert steps.pipelined(replace(T, stages=(4.0, 6.0))) == pytest.approx(6.0 + 0.1 + 0.2)


def test_drained_step_is_stage_1_alone():
    assert steps.drained(T) == pytest.approx(4.8 + 0.1 + 0.2)


def test_asyncdiff_sends_the_features_of_both_branches():
    assert steps.asyncdiff(T) == pytest.approx(9.0 + 2 * 0.4 + 0.2)
    assert steps.asyncdiff(replace(T, cut=0.2)) == pytest.approx(9.5 + 2 * 0.1 + 0.2)
