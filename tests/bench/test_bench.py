"""`hybridiff bench`: order, rows and failures of made-up processes, and real ones once."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hybridiff_compile.bench import bench as benchmark
from hybridiff_compile.bench import bench_view, figures, tables
from hybridiff_compile.bench.bench import Bench, measured
from hybridiff_compile.bench.measure import Made
from hybridiff_compile.bench.ready import Job
from hybridiff_compile.cli import app
from hybridiff_compile.errors import ConfigError
from tests import pipelines

SECONDS = {("one-device", "eager"): 4.0, ("one-device", "inductor"): 3.0}


class Fake:
    """A process that needs no time; a mode's pictures are all of one brightness."""

    def __init__(self, job: Job, log: list[str]) -> None:
        self.job, self.scheduler, self.log = job, "Euler", log
        rss, pss = ((100.0,), (90.0,)) if job.mode[0] == "o" else ((100.0, 50.0), (90.0, 40.0))
        self.taken = {"ranks": len(rss), "peak_rss_mb": rss, "peak_pss_mb": pss}
        self.taken |= {"first_picture_seconds": 9.0, "denoiser_ms": 3.0}
        if job.backend != "eager":
            self.taken |= {"compile_seconds_cold": 7.0, "graphs": (2,), "recompiles": 1}

    def make(self, seed: int) -> Made:
        self.log.append(f"{self.job.mode[0]}{self.job.backend[0]}{seed}")
        seconds = SECONDS.get((self.job.mode, self.job.backend), 2.0) + seed
        bright = 0.5 if self.job.mode.startswith("one") else 0.6
        pictures = np.full((1, 8, 8, 3), bright, dtype=np.float32)
        return Made(seconds, (0.1,) * 5, torch.full((1, 4, 2, 2), bright), pictures, None)


@contextmanager
def fake(job: Job) -> Iterator[Fake]:
    assert not job.cache.exists()
    yield Fake(job, LOG)


LOG: list[str] = []


def rows_of(bench: Bench, told: list[str] | None = None) -> list[figures.Row]:
    (rows,) = measured(bench, "tiny-sd3", (told if told is not None else []).append, fake)
    return rows


def test_rows_take_turns_after_all_are_ready_and_have_warmed_up():
    LOG.clear()
    told: list[str] = []
    rows_of(Bench(backend="eager", steps=6, runs=2, thinned="quick"), told)
    first = ["oe", "oe", "ee", "pe", "he", "ae"]
    turns = [f"{name}0" for name in (*first, *first)] + [f"{name}1" for name in (*first[1:], "oe")]
    assert turns == LOG
    assert told[0] == "tiny-sd3: one device, eager, preparing"
    assert told[6:8] == [
        "tiny-sd3: one device, eager, warming up",
        "tiny-sd3: one device, apart, warming up",
    ]
    assert told[-1] == "tiny-sd3: one device, eager, picture 2 of 2"


def test_every_row_is_compared_with_one_device_of_its_own_backend():
    bench = Bench(steps=6, runs=3)
    told: list[str] = []
    rows = rows_of(bench, told)
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
    assert {r.peak_rss_mb for r in rows} == {(100.0,), (100.0, 50.0)}
    assert {r.first_picture_seconds for r in rows} == {9.0}
    # Whole steps: the denoiser alone is of --compile.
    assert {r.step_ms_by_phase["serial"] for r in rows if r.step_ms_by_phase} == {100.0}
    assert [r.recompiles for r in rows[:3]] == [None, 1, None]
    assert [r.ranks for r in rows] == [1, 1, 1, 2, 2, 2, 2]


def test_eager_ranks_are_compared_with_eager_one_device():
    bench = Bench(backend="eager", steps=6, runs=1)
    rows = rows_of(bench)
    assert {r.backend for r in rows[2:]} == {"eager"}
    assert rows[3].speedup == pytest.approx(4 / 2)


def test_the_bound_of_exact_is_of_its_own_backend():
    bench = Bench(backend="eager", steps=6, runs=1)
    steps = {"one-device": {"eager": 16.0, "inductor": 10.0}, "one-device-apart": {"eager": 20.0}}
    rows = [
        row.model_copy(
            update={"step_ms_by_phase": {"serial": steps[row.mode][row.backend or ""]}}
            if row.mode in steps
            else {}
        )
        for row in rows_of(bench)
    ]
    assert tables.batching(rows) == pytest.approx(2 * 16 / 20)
    compiled = [r.model_copy(update={"backend": "inductor"}) for r in rows if r.mode == "exact"]
    assert tables.batching([*rows, *compiled]) is None


def test_table_and_chart_bear_the_machine_and_every_row(tmp_path: Path) -> None:
    rows = rows_of(Bench(steps=6))
    where = figures.environment(threads_per_rank=1)
    (table,) = tables.tables(rows, bench_view.SPEED, "quick: no compiling")
    written = tables.markdown(table)
    assert written.endswith("|\n\nquick: no compiling")
    for row in ("one device, eager", "one device, compiled", "asyncdiff, compiled"):
        assert f"| {row} |" in written
    assert bench_view.note(rows[3]) == "3.00 s,  1.33 x,  20 dB"
    bench_view.draw(tmp_path / "latency.png", rows, where, compiles=False)
    assert (tmp_path / "latency.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_run_of_real_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipelines.shallow().save_pretrained(tmp_path / "shallow")  # compiled in half the time
    monkeypatch.setattr(benchmark, "RANKS", ("exact", "asyncdiff"))
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
    written = (tmp_path / "out" / "latency.md").read_text()
    where = figures.read(tmp_path / "bench.json").environment
    assert written.startswith(f"{where.cpu}, {where.cpu_count} cores, 1 thread a rank; ")
    assert written.endswith(f"{bench_view.SPEED.footnote}\n")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"models": ("sdxl",)}, "unknown model or folder sdxl"),
        ({"backend": "tensorrt"}, "backend='tensorrt'.*eager"),
        ({"models": ("tiny-sd3", "tiny-sd3")}, "two have one name in the tables"),
        ({"steps": 2}, "steps=2 must be at least 3"),
        ({"steps": 5, "compiles": True}, "steps=5 must be at least 6"),
        ({"runs": 0}, "runs=0 must be at least 1"),
    ],
)
def test_what_measures_nothing_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Bench(**asked)


def test_a_folder_without_a_pipeline_is_refused_and_no_folder_is_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    asked = ("--model", str(tmp_path / "empty"), "--out", str(tmp_path / "out"))
    result = CliRunner().invoke(app, ["bench", *asked])
    assert result.exit_code == 2
    assert "there is no model_index.json in it" in result.output
    assert result.output.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]
