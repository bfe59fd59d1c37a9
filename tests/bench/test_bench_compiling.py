"""`hybridiff bench --compile`: caches, packages and rows of made-up processes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from hybridiff_compile.bench import bench as benchmark
from hybridiff_compile.bench import estimate, figures
from hybridiff_compile.bench.bench import COMPILED, Bench
from hybridiff_compile.bench.measure import Made
from hybridiff_compile.bench.ready import Job
from hybridiff_compile.config import UNET_SWITCHING, Config, SwitchSettings
from hybridiff_compile.errors import HybridiffError

QUIET = Console(quiet=True)


class FakeStart:
    """Stands for the processes of the rows, and notes what they were asked and where."""

    def __init__(self, fails_at: tuple[str, str] | None = None):
        self.asked: list[Job] = []
        self.contents: list[list[str]] = []
        self.seeds: list[list[int]] = []
        self.fails_at, self.is_running = fails_at, False

    @contextmanager
    def __call__(self, job: Job) -> Iterator["FakeEntrant"]:
        self.asked.append(job)
        if (job.mode, job.backend) == self.fails_at:
            raise HybridiffError("the compiler was killed")
        assert not self.is_running, "one process at a time: they would slow each other"
        self.is_running = True
        job.cache.mkdir(exist_ok=True)
        self.contents.append([p.name for p in job.cache.iterdir()])
        (job.cache / "kernel").touch()
        self.seeds.append([])
        yield FakeEntrant(job, self.seeds[-1], warm=self.contents[-1] == ["kernel"])
        self.is_running = False


class FakeEntrant:
    def __init__(self, job: Job, seeds: list[int], warm: bool):
        self.job, self.scheduler, self.seeds = job, "Euler", seeds
        key = "load_seconds" if job.package else "compile_seconds_cold"
        ready = None if job.backend == "eager" else 8.0 if warm else 40.0
        self.taken = {key: ready, "denoiser_ms": 20.0, "first_picture_seconds": 50.0}
        self.taken |= {"peak_rss_mb": (600.0,), "peak_pss_mb": (500.0,)}
        if job.backend != "eager":
            self.taken |= {"graphs": (2, 2), "recompiles": 0}

    def make(self, seed: int) -> Made:
        self.seeds.append(seed)
        seconds = 6.0 if self.job.backend == "eager" else 4.0 if self.job.mode[0] == "o" else 2.0
        pictures = np.zeros((1, 8, 8, 3), dtype=np.float32)
        return Made(seconds, (0.1,) * 5, torch.zeros(1, 4, 2, 2), pictures, None)


def rows_of(start, names=("tiny-sd3",)):
    told: list[str] = []
    bench = Bench(models=names, compiles=True, steps=9, runs=2)
    found = [benchmark.measured(bench, name, told.append, start) for name in names]
    return [row for rows in found for (row,) in rows], told


def test_a_row_for_every_variant_of_every_model():
    rows, _ = rows_of(FakeStart(), ("tiny-sd3", "tiny-sdxl"))
    assert [(r.mode, r.backend, r.scope) for r in rows] == [*COMPILED, *COMPILED]
    assert [r.model for r in rows] == ["tiny-sd3"] * len(COMPILED) + ["tiny-sdxl"] * len(COMPILED)


def test_cold_has_an_empty_cache_and_warm_the_one_that_cold_filled():
    start = FakeStart()
    rows, told = rows_of(start)
    first, cold, warm = start.asked[:3]
    assert (first.backend, cold, start.seeds[:3]) == ("eager", warm, [[0, 0, 1], [0, 0, 1], [0]])
    assert cold.cache != first.cache
    assert start.contents[:3] == [[], [], ["kernel"]]
    assert (rows[1].compile_seconds_cold, rows[1].compile_seconds_warm) == (40.0, 8.0)
    assert rows[0].compile_seconds_cold is None
    assert told[4] == "tiny-sd3: one device, compiled, preparing"
    assert told[8:10] == [
        "tiny-sd3: one device, compiled, once more",
        "tiny-sd3: exact, stage, preparing",
    ]
    # No row starts with what another one left.
    pairs = zip(start.contents, start.seeds, strict=True)
    made = [contents for contents, seeds in pairs if len(seeds) == 3]
    assert made == [[]] * len(COMPILED)
    assert not any(job.cache.exists() for job in start.asked)


def test_a_row_holds_what_its_processes_took_and_pictures_after_the_first_one():
    rows, _ = rows_of(FakeStart())
    row = rows[3]
    assert (row.first_picture_seconds, row.runs, row.seconds) == (50.0, 2, 2.0)
    assert (row.graphs, row.recompiles, row.peak_rss_mb) == ((2, 2), 0, (600.0,))
    assert (rows[0].graphs, rows[0].recompiles) == (None, None)
    assert row.step_ms_by_phase == {"serial": 20.0}
    assert (row.scheduler, row.steps, row.guidance_scale, row.psnr_db) == ("Euler", 9, 5.0, None)


def test_a_package_is_exported_in_one_process_and_loaded_in_another():
    start = FakeStart()
    rows, told = rows_of(start)
    export, load = [job for job in start.asked if job.package][:2]
    assert (export.exports, load.exports) == (True, False)
    # Loading finds nothing of what exporting left in a cache.
    assert replace(load, exports=True, cache=export.cache) == export
    assert export.cache != load.cache
    row = next(r for r in rows if r.backend == "aot")
    assert (row.load_seconds, row.compile_seconds_cold) == (40.0, None)
    assert "tiny-sd3: exact, package, preparing" in told


def test_speedup_is_against_one_device_with_the_same_backend():
    rows, _ = rows_of(FakeStart())
    speedups = {(r.mode, r.backend, r.scope): r.speedup for r in rows}
    assert speedups["one-device", "eager", None] == 1.0
    assert speedups["one-device", "inductor", None] == 1.0
    assert speedups["exact", "inductor", "regional"] == 2.0
    assert speedups["exact", "aot", "stage"] is None


def test_only_the_papers_mode_is_given_a_schedule():
    start = FakeStart()
    rows_of(start)
    given = {job.mode: dict(job.switching) for job in start.asked}
    assert given == {"one-device": {}, "exact": {}, "paper": {"tau1": 3, "k": 3}}


@pytest.mark.parametrize("steps", range(6, 60))
def test_the_papers_schedule_swaps_phases_twice_in_a_run(steps):
    given: dict[str, Any] = benchmark.schedule("paper", steps)
    switching = Config(mode="paper", **given).switching(UNET_SWITCHING, steps)
    assert isinstance(switching, SwitchSettings)
    assert switching.tau1 is not None
    assert min(switching.tau1, switching.k, steps - switching.tau1 - switching.k) >= 2


@pytest.fixture
def started(monkeypatch):
    """A run whose processes are made up."""

    def start_with(start):
        of = benchmark.measured
        monkeypatch.setattr(estimate, "step_seconds", lambda pipe, call: 0.02)
        monkeypatch.setattr(benchmark, "measured", partial(of, start=start))

    return start_with


def test_a_run_writes_the_table_the_chart_and_the_figures(started, tmp_path):
    started(FakeStart())
    out, file = tmp_path / "out", tmp_path / "new" / "bench.json"
    bench = Bench(models=("tiny-sd3",), compiles=True, steps=9, runs=2, out=out, json=file)
    rows = benchmark.run(bench, QUIET)
    assert sorted(p.name for p in out.iterdir()) == ["compile.md", "compile.png"]
    assert list(figures.read(file).rows) == rows
    table = (out / "compile.md").read_text()
    assert "| exact, regional | 40.0 | 1.00 | 8.0 | 0.20 |" in table


def test_a_row_is_printed_as_it_is_known_after_how_long_all_will_take(started, tmp_path, capsys):
    started(FakeStart(fails_at=("exact", "inductor")))
    bench = Bench(models=("tiny-sd3",), compiles=True, steps=9, runs=2, out=tmp_path / "out")
    with pytest.raises(HybridiffError):
        benchmark.run(bench, Console(width=200))
    first, eager, compiled = capsys.readouterr().out.splitlines()
    assert first.startswith("about ")
    assert eager == (
        "tiny-sd3, one device, eager: first picture s 50.0, step ms serial / pip. / forecast "
        "20.0 / - / -, peak MB by rank 600"
    )
    assert compiled.startswith("tiny-sd3, one device, compiled: cold s 40.0, cold / one dev. 1.00")
    assert not (tmp_path / "out").exists()


def test_the_rows_before_one_that_fails_are_kept(started, tmp_path):
    started(FakeStart(fails_at=("exact", "aot")))
    file = tmp_path / "bench.json"
    with pytest.raises(HybridiffError, match="the compiler was killed"):
        benchmark.run(Bench(models=("tiny-sd3",), compiles=True, out=tmp_path, json=file), QUIET)
    assert len(json.loads(file.read_text())["rows"]) == COMPILED.index(("exact", "aot", "stage"))
    assert [p.name for p in tmp_path.iterdir()] == ["bench.json"]
