"""`hybridiff bench`: order, rows and failures of made-up processes, and real ones once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hybridiff_compile.bench import figures, latency_bench, tables
from hybridiff_compile.bench.entrant import Totals, entered
from hybridiff_compile.bench.latency_bench import LatencyBench, in_turn, measured
from hybridiff_compile.bench.measure import Made
from hybridiff_compile.bench.ready import Job
from hybridiff_compile.cli import app
from hybridiff_compile.errors import ConfigError, HybridiffError
from tests import pipelines

SECONDS = {("one-device", "eager"): 4.0, ("one-device", "inductor"): 3.0}


class Fake:
    """A process that needs no time; a mode's pictures are all of one brightness."""

    def __init__(self, job: Job, log: list[str]) -> None:
        self.job, self.scheduler, self.log = job, "Euler", log
        self.ready_seconds = None if job.backend == "eager" else 7.0

    def make(self, seed: int) -> Made:
        self.log.append(f"{self.job.mode[0]}{self.job.backend[0]}{seed}")
        seconds = SECONDS.get((self.job.mode, self.job.backend), 2.0) + seed
        bright = 0.5 if self.job.mode.startswith("one") else 0.6
        pictures = np.full((1, 8, 8, 3), bright, dtype=np.float32)
        return Made(seconds, (0.1,) * 5, torch.full((1, 4, 2, 2), bright), pictures, None)

    def totals(self) -> Totals:
        return Totals((100.0,), (90.0,), (2,), 1, first_picture_seconds=9.0, denoiser_ms=None)


@contextmanager
def fake(job: Job) -> Iterator[Fake]:
    assert not job.cache.exists()
    yield Fake(job, LOG)


LOG: list[str] = []


def test_rows_take_turns_after_warming_up():
    LOG.clear()
    jobs = [Job("m", mode, "eager", None, {}, Path()) for mode in ("exact", "paper", "hybrid")]
    told: list[str] = []
    made = dict(in_turn([Fake(j, LOG) for j in jobs], 2, told.append))  # pyright: ignore
    assert LOG == ["ee0", "pe0", "he0", "ee0", "pe0", "he0", "pe1", "he1", "ee1"]
    assert [len(of) for of in made.values()] == [2, 2, 2]
    assert told[:2] == ["exact, eager, warming up", "paper, eager, warming up"]
    assert told[-1] == "exact, eager, picture 2 of 2"


def test_every_row_is_compared_with_one_device_of_its_own_backend():
    bench = LatencyBench(("tiny-sd3",), steps=6, runs=3)
    told: list[str] = []
    rows = measured(bench, "tiny-sd3", told.append, fake)
    assert [(r.mode, r.backend, r.scope) for r in rows] == [
        ("one-device", "eager", None),
        ("one-device", "inductor", None),
        ("one-device-apart", "eager", None),
        ("exact", "inductor", "regional"),
        ("paper", "inductor", "regional"),
        ("hybrid", "inductor", "regional"),
        ("asyncdiff", "inductor", "regional"),
    ]
    assert len(told) == len(rows) * 5
    # The middle seed adds a second: 5, 4, 3 and 3 seconds.
    assert [r.speedup for r in rows[:4]] == pytest.approx([1, 1, 5 / 3, 4 / 3])
    assert [r.seconds_p90 for r in rows[:1]] == pytest.approx([4 + 1.8])
    assert [r.compile_seconds_cold for r in rows[:3]] == [None, 7.0, None]
    assert rows[0].psnr_db == 100
    assert rows[3].psnr_db == pytest.approx(20, abs=1e-3)
    assert {r.peak_rss_mb for r in rows} == {(100.0,)}
    assert [r.recompiles for r in rows[:3]] == [None, 1, None]
    assert [r.ranks for r in rows] == [1, 1, 1, 2, 2, 2, 2]


def test_eager_ranks_are_compared_with_eager_one_device():
    bench = LatencyBench(("tiny-sd3",), backend="eager", steps=6, runs=1)
    rows = measured(bench, "tiny-sd3", lambda _: None, fake)
    assert {r.backend for r in rows[2:]} == {"eager"}
    assert rows[3].speedup == pytest.approx(4 / 2)


def test_the_bound_of_exact_is_of_its_own_backend():
    bench = LatencyBench(("tiny-sd3",), backend="eager", steps=6, runs=1)
    steps = {"one-device": {"eager": 16.0, "inductor": 10.0}, "one-device-apart": {"eager": 20.0}}
    rows = [
        row.model_copy(
            update={"step_ms_by_phase": {"serial": steps[row.mode][row.backend or ""]}}
            if row.mode in steps
            else {}
        )
        for row in measured(bench, "tiny-sd3", lambda _: None, fake)
    ]
    assert tables.batching(rows) == pytest.approx(2 * 16 / 20)
    compiled = [r.model_copy(update={"backend": "inductor"}) for r in rows if r.mode == "exact"]
    assert tables.batching([*rows, *compiled]) is None


def test_table_and_chart_bear_the_machine_and_every_row(tmp_path: Path) -> None:
    rows = measured(LatencyBench(("tiny-sd3",), steps=6), "tiny-sd3", lambda _: None, fake)
    where = figures.environment(threads_per_rank=1)
    written = tables.markdown(rows, latency_bench.LAYOUT, where, "quick: no compiling")
    assert "\n\nquick: no compiling\n\n|" in written
    assert written.startswith(f"{where.cpu}, {where.cpu_count} cores, 1 thread a rank; ")
    for row in ("one device, eager", "one device, compiled", "asyncdiff, compiled"):
        assert f"| {row} |" in written
    assert latency_bench.note(rows[3]) == "3.00 s,  1.33 x,  20 dB"
    latency_bench.draw(tmp_path / "latency.png", rows, where)
    assert (tmp_path / "latency.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_run_of_real_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipelines.shallow().save_pretrained(tmp_path / "shallow")  # compiled in half the time
    monkeypatch.setattr(latency_bench, "RANKS", ("exact", "asyncdiff"))
    asked = ("--model", str(tmp_path / "shallow"), "--backend", "eager", "--steps", "6")
    files = ("--out", str(tmp_path / "out"), "--json", str(tmp_path / "bench.json"))
    result = CliRunner().invoke(app, ["bench", *asked, "--runs", "1", *files])
    assert result.exit_code == 0, result.output
    rows = {(r.mode, r.backend): r for r in figures.read(tmp_path / "bench.json").rows}
    assert len(rows) == 5
    compiled, exact = rows["one-device", "inductor"], rows["exact", "eager"]
    assert compiled.compile_seconds_cold is not None
    assert compiled.compile_seconds_cold > 1
    assert compiled.recompiles == 0
    assert exact.psnr_db == 100
    assert exact.max_abs_error == 0
    assert exact.bytes_sent is not None
    assert exact.bytes_sent > 0
    assert exact.peak_rss_mb is not None
    assert len(exact.peak_rss_mb) == 2
    asyncdiff = rows["asyncdiff", "eager"]
    assert asyncdiff.steps_by_phase == {"serial": 1, "pipelined": 5, "forecast": 0}
    assert asyncdiff.psnr_db is not None
    assert asyncdiff.psnr_db < 100
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"latency.md", "latency.png"}


def test_a_process_that_dies_is_one_clear_error(tmp_path: Path) -> None:
    job = Job("tiny-sd3", "one-device", "eager", None, {"num_inference_steps": 2}, tmp_path / "c")
    with entered(job) as entrant:
        entrant._process.kill()
        with pytest.raises(HybridiffError, match="it ended with exit code -9"):
            entrant.make(0)


@pytest.mark.slow
def test_a_process_that_fails_is_one_clear_error(tmp_path: Path) -> None:
    job = Job(str(tmp_path), "exact", "eager", None, {}, tmp_path / "cache")
    with pytest.raises(HybridiffError, match=r"mode exact, backend eager: .*(?s:.*)no model_index"):
        entered(job).__enter__()


@pytest.mark.slow
def test_a_process_ends_with_its_command_in_the_midst_of_a_picture(tmp_path: Path) -> None:
    call = {"num_inference_steps": 900, "height": 128, "width": 128}
    command = f"""
import sys
from pathlib import Path
from hybridiff_compile.bench.entrant import entered
from hybridiff_compile.bench.ready import Job
if __name__ == "__main__":
    job = Job("tiny-sd3", "one-device", "eager", None, {call!r}, Path({str(tmp_path / "c")!r}))
    with entered(job) as entrant:
        print(entrant._process.pid, flush=True)
        entrant.make(0)
"""
    script = tmp_path / "command.py"
    script.write_text(command)
    driver = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    pid = int(driver.stdout.readline())
    time.sleep(1)
    driver.kill()
    driver.wait()  # for it alone: the process writes to the same pipe
    deadline = time.monotonic() + 10  # of a picture that takes more than a minute
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    left = Path(f"/proc/{pid}").exists()
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    driver.stdout.close()
    assert not left


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"models": ("sdxl",)}, "unknown model sdxl"),
        ({"backend": "tensorrt"}, "backend='tensorrt': choose one of eager, inductor"),
        ({"models": (".",)}, r"\. holds no pipeline: no model_index"),
        ({"models": ("tiny-sd3", "tiny-sd3")}, "two have one name in the tables"),
        ({"steps": 2}, "steps=2 must be at least 3"),
        ({"runs": 0}, "runs=0 must be at least 1"),
    ],
)
def test_what_measures_nothing_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        latency_bench.LatencyBench(**asked)
