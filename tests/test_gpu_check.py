"""What examples/gpu_check.py computes without a GPU: its links, its projection, its failures."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from hybridiff_compile.planning.devices import Link
from hybridiff_compile.planning.runs import Times

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import an example by its name, as the command does."""
    monkeypatch.syspath_prepend(EXAMPLES)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if name.startswith("gpu_"):
            del sys.modules[name]


def test_projected_step_waits_for_the_slower_rank_and_what_it_sends(example: Any) -> None:
    gpu_ranks = example("gpu_ranks")
    times = Times(0.02, (0.010, 0.010), (0.005, 0.006), (0.01, 0.01), cut=9, prediction=9)
    link = Link("stated", rate=25e9, latency=0.0)
    steps = gpu_ranks.projected(times, link, 50_000_000, 1_000_000)
    assert steps["exact"] == pytest.approx({"serial": 10.04})
    assert steps["paper"] == pytest.approx({"serial": 10.04, "pipelined": 7.0})
    assert gpu_ranks.mean_step_ms("exact", steps["exact"]) == pytest.approx(10.04)
    assert gpu_ranks.mean_step_ms("paper", steps["paper"]) == pytest.approx(9.736)


def test_a_case_that_fails_says_why_in_a_line(example: Any) -> None:
    gpu_check = example("gpu_check")
    case = gpu_check.Case("pictures", "no-such-model", "float32", 100)
    made, failed = gpu_check.in_process(case, rehearse=True)
    assert made == []
    assert failed.startswith(
        "hybridiff_compile.errors.ConfigError: unknown model no-such-model; choose from "
    )


def test_a_case_that_takes_too_long_is_ended(example: Any) -> None:
    gpu_check = example("gpu_check")
    case = gpu_check.Case("pictures", "tiny-sd3", "float32", 0.2)
    made, failed = gpu_check.in_process(case, rehearse=True)
    assert (made, failed) == ([], "killed: over its 0 s, or out of memory")


def test_sections_and_models_are_chosen_by_name(example: Any) -> None:
    gpu_check = example("gpu_check")
    assert {c.section for c in gpu_check.cases(None, [])} == set(gpu_check.SECTIONS)
    chosen = gpu_check.cases("compile", ["tiny-sd3"])
    assert [str(c) for c in chosen] == [
        "compile tiny-sd3 stage",
        "compile tiny-sd3 stage+graphs",
        "compile tiny-sd3 regional",
        "compile tiny-sd3 regional+graphs",
    ]
    assert gpu_check.cases("ranks", ["tiny-sd3"]) == []
