"""What examples/gpu_check.py computes without a GPU: its links, its projection, its failures."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridiff_compile.config import Lowering
from hybridiff_compile.ir import Phase
from hybridiff_compile.passes import build_programs
from tests import toy

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


def test_a_ranks_program_alone_computes_what_two_ranks_do(example: Any) -> None:
    gpu_ranks, call = example("gpu_ranks"), toy.call_of()
    programs = build_programs(toy.captured().program, "paper")
    values = call.inputs(toy.captured().shared)
    with torch.no_grad():
        alone = gpu_ranks.Alone(programs, Lowering(), values, torch.device("cpu"))
        serial = alone.step(0, Phase.SERIAL)["prediction"]
        alone.step(1, Phase.PIPELINED)
        pipelined = alone.step(0, Phase.PIPELINED)["prediction"]
    expected = [toy.run(toy.seeded(toy.Toy), call.branch(b)) for b in range(2)]
    assert torch.equal(serial, torch.cat(expected))
    # The cut is of this same step, made from branch u, and stage1 reads the embeddings of branch c.
    assert torch.equal(*pipelined.chunk(2))
    assert not torch.equal(pipelined[:1], expected[0])
    sizes = gpu_ranks.sent_bytes(programs)
    assert sizes == {"cut_bytes": 4096, "prediction_bytes": 4 * 8 * 8 * 4}


def test_projected_step_waits_for_the_slower_rank_and_what_it_sends(example: Any) -> None:
    gpu_ranks = example("gpu_ranks")
    steps = gpu_ranks.projected([10.0, 10.0], [5.0, 6.0], 50_000_000, 1_000_000, 25e9)
    assert steps["exact"] == pytest.approx({"serial": 10.04})
    assert steps["paper"] == pytest.approx({"serial": 10.04, "pipelined": 7.0})
    assert gpu_ranks.mean_step_ms("exact", steps["exact"]) == pytest.approx(10.04)
    assert gpu_ranks.mean_step_ms("paper", steps["paper"]) == pytest.approx(9.736)


def test_a_case_that_fails_says_why_in_a_line(example: Any) -> None:
    gpu_check = example("gpu_check")
    case = gpu_check.Case("pictures", "no-such-model", "float32", 100)
    made, failed = gpu_check.in_process(case, rehearse=True)
    assert made == []
    assert failed.startswith("ValueError: unknown model 'no-such-model'")


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
