import json
from pathlib import Path

import pytest
from rich.console import Console

from hybridiff_compile.bench import compile_bench, figures
from hybridiff_compile.bench.compile_bench import VARIANTS, CompileBench, in_process_of_its_own
from hybridiff_compile.bench.compile_row import Job
from hybridiff_compile.errors import ConfigError, HybridiffError

QUIET = Console(quiet=True)


class FakeStart:
    """Answers for the processes of the rows, and notes what they were asked and where."""

    def __init__(self, fails_at: tuple[str, str] | None = None):
        self.asked: list[tuple[str, Job, Path]] = []
        self.contents: list[list[str]] = []
        self.fails_at = fails_at

    def __call__(self, task, job, cache):
        self.asked.append((task, job, cache))
        if (job.mode, job.backend) == self.fails_at:
            raise HybridiffError("the compiler was killed")
        cache.mkdir(exist_ok=True)
        self.contents.append([p.name for p in cache.iterdir()])
        (cache / task).touch()
        if task == "export":
            return {}
        if job.runs == 0:
            return {"ready_seconds": 8.0}
        found = {
            "seconds": 4.0 if job.mode == "one-device" else 2.0,
            "step_ms_by_phase": {"serial": 20.0},
            "first_picture_seconds": 50.0,
        }
        if job.backend == "eager":
            return found | {"seconds": 6.0}
        return found | {"ready_seconds": 40.0, "graphs": [2, 2], "recompiles": 0}


def rows_of(start, names=("tiny-sd3",)):
    told = []
    bench = CompileBench(names, steps=9, runs=2)
    rows = list(compile_bench.measured(bench, lambda job, what: told.append(what), start))
    return rows, told


def test_a_row_for_every_variant_of_every_model():
    rows, _ = rows_of(FakeStart(), ("tiny-sd3", "tiny-sdxl"))
    assert [(r.mode, r.backend, r.scope) for r in rows] == [*VARIANTS, *VARIANTS]
    assert [r.model for r in rows] == ["tiny-sd3"] * len(VARIANTS) + ["tiny-sdxl"] * len(VARIANTS)


def test_cold_has_an_empty_cache_and_warm_the_one_that_cold_filled():
    start = FakeStart()
    rows, told = rows_of(start)
    first, cold, warm = start.asked[:3]
    assert (first[1].backend, cold[1].runs, warm[1].runs) == ("eager", 2, 0)
    assert cold[2] == warm[2] != first[2]
    assert start.contents[:3] == [[], [], ["measure"]]
    assert (rows[1].compile_seconds_cold, rows[1].compile_seconds_warm) == (40.0, 8.0)
    assert rows[0].compile_seconds_cold is None
    assert told[:5] == ["cold", "done", "cold", "warm", "done"]
    # No row starts with what another one left.
    colds = [i for i, (_, job, _) in enumerate(start.asked) if job.runs > 0]
    assert all(start.contents[i] == [] for i in colds)
    assert not any(cache.exists() for _, _, cache in start.asked)


def test_a_package_is_exported_in_one_process_and_loaded_in_another():
    start = FakeStart()
    rows, _ = rows_of(start)
    export, load = [(task, job, cache) for task, job, cache in start.asked if job.package][:2]
    assert (export[0], load[0]) == ("export", "measure")
    assert export[1] == load[1]
    # Loading finds nothing of what exporting left in a cache.
    assert export[2] != load[2]
    row = next(r for r in rows if r.backend == "aot")
    assert (row.load_seconds, row.compile_seconds_cold) == (40.0, None)


def test_speedup_is_against_one_device_with_the_same_backend():
    rows, _ = rows_of(FakeStart())
    speedups = {(r.mode, r.backend, r.scope): r.speedup for r in rows}
    assert speedups["one-device", "eager", None] == 1.0
    assert speedups["one-device", "inductor", None] == 1.0
    assert speedups["exact", "inductor", "regional"] == 2.0
    assert speedups["exact", "aot", "stage"] is None


def test_a_run_writes_the_table_the_chart_and_the_figures(monkeypatch, tmp_path):
    monkeypatch.setattr(compile_bench, "in_process_of_its_own", FakeStart())
    out, file = tmp_path / "out", tmp_path / "new" / "bench.json"
    bench = CompileBench(("tiny-sd3",), steps=9, runs=2, out=out, json=file)
    rows = compile_bench.run(bench, QUIET)
    assert sorted(p.name for p in out.iterdir()) == ["compile.md", "compile.png"]
    assert list(figures.read(file).rows) == rows
    table = (out / "compile.md").read_text()
    assert "| tiny-sd3 | exact, regional | 40.0 | 1.00 | 8.0 | 0.20 |" in table


def test_the_rows_before_one_that_fails_are_kept(monkeypatch, tmp_path):
    start = FakeStart(fails_at=("exact", "aot"))
    monkeypatch.setattr(compile_bench, "in_process_of_its_own", start)
    file = tmp_path / "bench.json"
    with pytest.raises(HybridiffError, match="the compiler was killed"):
        compile_bench.run(CompileBench(("tiny-sd3",), out=tmp_path, json=file), QUIET)
    assert len(json.loads(file.read_text())["rows"]) == VARIANTS.index(("exact", "aot", "stage"))


def test_a_process_that_fails_is_named_with_its_last_words(tmp_path):
    job = Job("tiny-dalle", "exact", "inductor", "regional", 6, 1)
    with pytest.raises(HybridiffError) as error:
        in_process_of_its_own("measure", job, tmp_path)
    said = str(error.value)
    assert said.startswith("tiny-dalle, exact, regional: the process that was to measure it ended")
    assert "exit code 1" in said
    assert said.endswith("unknown model 'tiny-dalle': it is one of tiny-sdxl, tiny-sd3, sdxl-small")


def test_a_process_gets_the_cache_folder_and_answers_with_its_last_line(monkeypatch, tmp_path):
    seen = {}

    def run(command, **kwargs):
        seen.update(command=command, **kwargs)
        return type("Done", (), {"returncode": 0, "stdout": 'noise\n{"seconds": 1.5}\n'})

    monkeypatch.setattr(compile_bench.subprocess, "run", run)
    job = Job("tiny-sd3", "paper", "inductor", "whole", 6, 1)
    assert in_process_of_its_own("measure", job, tmp_path) == {"seconds": 1.5}
    assert seen["env"]["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)
    assert Job(**json.loads(seen["command"][-1])) == job


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"names": ("tiny-dalle",)}, "unknown model tiny-dalle"),
        ({"steps": 5}, "steps=5 must be at least 6"),
        ({"runs": 0}, "runs=0 must be at least 1"),
    ],
)
def test_a_benchmark_that_could_not_run_is_refused(change, says):
    with pytest.raises(ConfigError, match=says):
        CompileBench(**change)
