import json
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from hybridiff_compile.bench import models, summary
from hybridiff_compile.bench.demo import Demo, closing, run, trace
from hybridiff_compile.bench.figures import Row
from hybridiff_compile.bench.measure import Contender, measure, one_thread
from hybridiff_compile.errors import ConfigError
from hybridiff_compile.ir import Phase
from hybridiff_compile.runtime.report import RunReport, StepRecord
from tests import pipelines

STEPS = 6
SERIAL_SECONDS, PIPELINED_SECONDS = 0.02, 0.005


class FakePipe:
    """Makes grey pictures, brighter by `off` than the seed says, and sleeps at every step."""

    def __init__(self, off=0.0, tau1=None, calls=None):
        self.off, self.tau1, self.calls = off, tau1, calls if calls is not None else []
        self.report = None

    def __call__(
        self, prompt, *, generator, output_type, callback_on_step_end, num_inference_steps
    ):
        assert output_type == "np"
        self.calls.append((prompt, generator.initial_seed(), torch.get_num_threads()))
        latents = torch.full((1, 4, 2, 2), 0.1 * generator.initial_seed() + self.off)
        steps = []
        for i in range(num_inference_steps):
            pipelined = self.tau1 is not None and self.tau1 <= i < self.tau1 + 2
            phase = Phase.PIPELINED if pipelined else Phase.SERIAL
            seconds = PIPELINED_SECONDS if pipelined else SERIAL_SECONDS
            time.sleep(seconds)
            callback_on_step_end(self, i, 0, {"latents": latents})
            steps.append(
                StepRecord(
                    i, phase, phase.kind, "", seconds, None if pipelined else 1.0 / (i + 1), None
                )
            )
        tau2 = None if self.tau1 is None else self.tau1 + 2
        self.report = RunReport("fake", 2, tuple(steps), self.tau1, tau2, 1000, (1.0,))
        level = float(latents[0, 0, 0, 0])
        return SimpleNamespace(images=np.full((1, 8, 8, 3), level, dtype=np.float32))


def fake_contenders(calls=None):
    def optimized(mode, pipe):
        return Contender(mode, "FakeScheduler", pipe, lambda: pipe.report)

    return [
        Contender("one-device", "FakeScheduler", FakePipe(off=0.01, calls=calls)),
        optimized("one-device-apart", FakePipe(calls=calls)),
        optimized("exact", FakePipe(calls=calls)),
        optimized("paper", FakePipe(off=0.1, tau1=3, calls=calls)),
    ]


@pytest.fixture(scope="module")
def made():
    return measure(fake_contenders(), ["a", "b", "c"], num_inference_steps=STEPS)


def test_every_mode_gets_the_same_prompts_and_seeds_in_turn_on_one_thread():
    calls, seen = [], []
    ready = fake_contenders(calls)
    before = torch.get_num_threads()
    measure(ready, ["a", "b"], tell=seen.append, num_inference_steps=2)
    assert calls == [("a", 0, 1)] * 8 + [("b", 1, 1)] * 4
    assert torch.get_num_threads() == before
    modes = [contender.mode for contender in ready]
    # Warm-up, then rounds that each start with another mode.
    assert [words.partition(",")[0] for words in seen] == modes + modes + modes[1:] + modes[:1]
    assert (seen[0], seen[-1]) == ("one-device, warming up", "one-device, picture 2 of 2")


def test_the_thread_count_is_put_back_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert torch.get_num_threads() == before


def test_rows_sum_up_each_mode(made):
    rows = {row.mode: row for row in summary.rows(made, command="demo", model="fake", steps=STEPS)}
    assert list(rows) == ["one-device", "one-device-apart", "exact", "paper"]
    paper, exact = rows["paper"], rows["exact"]
    assert (paper.tau1, paper.k, paper.bytes_sent, paper.runs) == (3, 2, 1000, 3)
    assert paper.steps_by_phase == {"serial": 4, "pipelined": 2, "forecast": 0}
    assert paper.psnr_db == pytest.approx(20.0, abs=0.01)
    assert paper.max_abs_error == pytest.approx(0.1, abs=1e-6)
    assert (exact.psnr_db, exact.max_abs_error) == (100.0, 0.0)
    assert (exact.tau1, exact.k, exact.prompts, exact.prompts_right) == (None,) * 4
    assert (exact.height, exact.width, exact.batch, exact.dtype) == (8, 8, 1, "float32")
    assert rows["one-device"].speedup == 1.0
    assert rows["one-device"].bytes_sent is None
    assert rows["one-device-apart"].psnr_db is None
    assert paper.seconds is not None
    assert rows["one-device"].seconds is not None
    assert paper.speedup == pytest.approx(rows["one-device"].seconds / paper.seconds)


def test_a_step_counts_for_the_phase_that_it_lies_in(made):
    times = summary.step_ms_by_phase(made["paper"])
    assert set(times) == {"serial", "pipelined"}
    assert times["pipelined"] >= 1000 * PIPELINED_SECONDS
    assert times["serial"] >= 1000 * SERIAL_SECONDS
    assert times["pipelined"] < times["serial"]
    assert set(summary.step_ms_by_phase(made["one-device"])) == {"serial"}


def test_prompts_right_is_the_share_that_the_judge_accepts(made):
    rows = summary.rows(
        made, judge=lambda index, of: index == 0, command="demo", model="fake", steps=STEPS
    )
    assert {(row.prompts_right, row.prompts) for row in rows} == {(1 / 3, 3)}


def test_the_typical_picture_is_the_one_with_the_median_tau1():
    made = [
        measure(
            [Contender("paper", "", pipe, lambda pipe=pipe: pipe.report)],
            ["a"],
            num_inference_steps=6,
        )
        for pipe in (FakePipe(tau1=2), FakePipe(tau1=4), FakePipe(tau1=3))
    ]
    typical = summary.typical([m["paper"][0] for m in made])
    assert typical.report is not None
    assert typical.report.tau1 == 3


def test_the_trace_joins_the_exact_runs_discrepancy_and_the_papers_times(made):
    shown = trace("fake", made)
    assert [len(curve) for curve in shown.discrepancies] == [STEPS] * 3
    assert (shown.tau1, shown.tau2) == (3, 5)
    assert np.isnan(shown.step_ms[0])
    assert len(shown.step_ms) == len(shown.phases) == STEPS
    assert set(shown.baselines) == {"one device", "exact"}


def row(mode: Any, speedup: float, psnr_db: float, error: float = 0.0, model: str = "a") -> Row:
    what: dict[str, Any] = {"command": "demo", "model": model, "mode": mode}
    return Row(speedup=speedup, psnr_db=psnr_db, max_abs_error=error, **what)


def test_a_demo_closes_with_how_much_faster_how_close_and_what_next():
    rows = [row("exact", 1.0, 100), row("hybrid", 2.113, 51.6, 0.1)]
    rows += [row("exact", 0.9, 100, model="b"), row("hybrid", 0.5, 44, 0.1, model="b")]
    said = closing(rows)
    assert "is 2.11 times as fast with a (52 dB), and 2.00 times as slow with b (44 dB)." in said
    assert "exact has the same bits as one device that computes the two halves one after" in said
    assert "Next: " in said
    assert "exact is within rounding" in closing([row("exact", 1.0, 100, 1e-6), rows[1]])


@pytest.mark.parametrize(
    "change", [{"models": ("tiny-dalle",)}, {"steps": 1}, {"prompts": 0}, {"runs": 0}]
)
def test_a_demo_that_could_not_run_is_refused(change):
    with pytest.raises(ConfigError, match=r"unknown model|must be at least"):
        Demo(**change)


@pytest.mark.parametrize("blocks", [2, pytest.param(None, marks=pytest.mark.slow)])
def test_the_demo_on_tiny_sd3(blocks, tmp_path, monkeypatch):
    """On few random blocks; `make test-all` takes the trained ones too."""
    own = models.load

    def few(name):
        pipe = own(name)
        pipelines.put_transformer(pipe, blocks)
        return pipe

    monkeypatch.setattr(models, "load", own if blocks is None else few)
    out, json_file = tmp_path / "demo", tmp_path / "figures.json"
    console = Console(quiet=True)
    run(Demo(models=("tiny-sd3",), steps=10, prompts=2, out=out, json=json_file), console)
    rows = {row["mode"]: row for row in json.loads(json_file.read_text())["rows"]}
    assert list(rows) == ["one-device", "one-device-apart", "exact", "paper", "hybrid"]
    assert (rows["exact"]["max_abs_error"], rows["exact"]["psnr_db"]) == (0.0, 100.0)
    assert rows["exact"]["steps_by_phase"] == {"serial": 10, "pipelined": 0, "forecast": 0}
    # The paper's constants for a transformer (k = 5 at most from step 40 on), scaled to 10 steps.
    assert rows["paper"]["steps_by_phase"] == {"serial": 9, "pipelined": 1, "forecast": 0}
    assert (rows["paper"]["k"], rows["paper"]["tau1"] <= 8) == (1, True)
    assert rows["paper"]["max_abs_error"] > 0
    assert sum(rows["hybrid"]["steps_by_phase"].values()) == 10
    assert rows["paper"]["bytes_sent"] > rows["exact"]["bytes_sent"] * 0.5 > 0
    assert rows["one-device"]["max_abs_error"] < 1e-3
    assert all(row["prompts"] == 2 and row["runs"] == 2 for row in rows.values())
    assert {p.name for p in out.iterdir()} == {"table.md", "steps.png", "pictures.png"}
