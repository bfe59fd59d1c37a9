"""A row's own process, from the inside: what it prepares, and what it says of itself."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

import hybridiff_compile
from hybridiff_compile import lower
from hybridiff_compile.bench import models, ranks, ready, summary
from hybridiff_compile.bench.measure import Made, make, one_thread
from hybridiff_compile.bench.ready import PROMPT, Job, Timed, opened
from hybridiff_compile.ir import Phase
from hybridiff_compile.runtime.report import RunReport, StepRecord


def job(mode: Any, backend: Any, scope: Any = None, **more: Any) -> Job:
    call = {**models.call_settings("tiny-sd3"), "num_inference_steps": 6}
    return Job("tiny-sd3", mode, backend, scope, call, Path("unused"), **more)


def test_a_timed_forward_notes_every_call_and_what_it_compiled(monkeypatch):
    compiled = iter([1, 1, 2])
    monkeypatch.setattr(lower, "compilations", lambda: next(compiled))
    timed = Timed(lambda x, scale: x * scale)
    assert [timed(x, scale=2) for x in (1, 2, 3)] == [2, 4, 6]
    assert timed.compilations == [1, 1, 2]
    assert len(timed.seconds) == 3
    assert min(timed.seconds) >= 0


@pytest.mark.parametrize(("first", "compiling"), [(5.0, 3.0), (1.0, 0.0)])
def test_compiling_is_the_first_call_less_a_later_one(first: float, compiling: float) -> None:
    timed = Timed(lambda: None, seconds=[first, 1.0, 9.0, 2.0])
    assert timed.compiling_seconds() == compiling


def test_steps_are_medians_of_each_phase_over_all_pictures():
    def made(*milliseconds: float) -> Any:
        phases = (Phase.SERIAL, Phase.PIPELINED)
        steps = (
            StepRecord(i, phases[i % 2], phases[i % 2].kind, "", m / 1000, None, None)
            for i, m in enumerate(milliseconds)
        )
        report = RunReport("paper", 2, tuple(steps), 1, 2, 0, (1.0,))
        return Made(1.0, (), None, None, report)  # pyright: ignore[reportArgumentType]

    found = summary.driver_ms_by_phase([made(10, 4, 12, 5), made(100, 6)])
    assert found == pytest.approx({"serial": 12, "pipelined": 5})


def test_one_device_as_it_is():
    with one_thread(), opened(job("one-device", "eager")) as found:
        watch = found.watch()
        made = make(found.contender, PROMPT, 0, **job("one-device", "eager").call)
        taken = found.taken(watch, made.seconds)
    assert (taken["compile_seconds_cold"], taken["ranks"]) == (None, 1)
    assert not {"graphs", "recompiles"} & set(taken)
    assert taken["first_picture_seconds"] == made.seconds
    assert 0 < 6 * taken["denoiser_ms"] < 1000 * made.seconds
    assert len(taken["peak_rss_mb"]) == 1
    assert taken["peak_rss_mb"][0] > taken["peak_pss_mb"][0] > 100


def test_two_ranks_with_both_phases():
    """What does the compiling is exchangeable: eager compiles nothing, and is soon ready."""
    asked = job("paper", "eager", "stage", switching={"tau1": 2, "k": 2})
    with one_thread(), opened(asked) as found:
        watch = found.watch()
        made = make(found.contender, PROMPT, 0, **asked.call)
        taken = found.taken(watch, 1.0)
    assert found.seconds is not None
    assert taken["compile_seconds_cold"] == found.seconds
    assert taken["first_picture_seconds"] == found.preparing_seconds + 1.0
    assert 0 < found.seconds < found.preparing_seconds
    assert set(summary.driver_ms_by_phase([made])) == {"serial", "pipelined"}
    row = summary.row("paper", [made], command="bench", model="tiny-sd3")
    assert row.steps_by_phase == {"serial": 4, "pipelined": 2, "forecast": 0}
    assert (row.tau1, row.k, row.psnr_db) == (2, 2, None)
    assert row.bytes_sent
    assert (found.graphs, found.compiled, "denoiser_ms" in taken) == ((0, 0), 0, False)
    assert len(taken["peak_rss_mb"]) == len(taken["peak_pss_mb"]) == taken["ranks"] == 2


class FakeModel:
    """A model that takes a while to start, and longer to be ready."""

    report = None

    def __init__(self):
        self.calls: list[dict] = []
        time.sleep(0.05)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def compile(self, *, progress, **call):
        self.calls.append(call)
        time.sleep(0.2)


@pytest.fixture
def compiled(monkeypatch):
    """Ranks that have compiled nothing, of a model that was made up."""
    monkeypatch.setattr(ranks, "compilations", lambda model: [3, 2])
    monkeypatch.setattr(ranks, "packaged", lambda model: [1, 1])
    monkeypatch.setattr(ranks, "pids", lambda model: [os.getpid()] * 2)


def test_ready_is_told_without_the_start_of_the_ranks(monkeypatch, compiled):
    made = []

    def optimize(pipe, **settings):
        made.append((FakeModel(), settings))
        return made[0][0]

    monkeypatch.setattr(hybridiff_compile, "optimize", optimize, raising=False)
    asked = job("paper", "inductor", "whole", switching={"tau1": 3, "k": 3})
    with opened(asked) as found:
        assert found.seconds == pytest.approx(0.2, abs=0.04)
        assert found.preparing_seconds >= 0.25
        assert (found.compiled, found.graphs) == (5, (3, 2))
        monkeypatch.setattr(ranks, "compilations", lambda model: [4, 2])
        assert found.taken(found.watch(), 1.0)["recompiles"] == 1
    model, settings = made[0]
    assert settings == {"mode": "paper", "tau1": 3, "k": 3, "backend": "inductor", "scope": "whole"}
    assert model.calls == [asked.call]


def test_a_load_is_measured_from_its_beginning(monkeypatch, compiled, tmp_path):
    def load(folder, pipe):
        assert folder == tmp_path
        return FakeModel()

    monkeypatch.setattr(hybridiff_compile, "load", load, raising=False)
    with opened(job("exact", "aot", "stage", package=tmp_path)) as found:
        assert found.seconds is not None
        assert found.seconds >= 0.25
        assert found.graphs == (1, 1)
        taken = found.taken(found.watch(), 1.0)
        assert (taken["load_seconds"], taken["graphs"]) == (found.seconds, (1, 1))
        assert taken["recompiles"] == 0


def test_a_package_is_exported_once_all_ranks_are_ready(monkeypatch, compiled, tmp_path):
    done, model = [], FakeModel()
    monkeypatch.setattr(hybridiff_compile, "optimize", lambda pipe, mode: model, raising=False)

    def export(*given, **how):
        done.append((given, how, len(model.calls)))

    monkeypatch.setattr(hybridiff_compile, "export", export, raising=False)
    with opened(job("exact", "aot", "stage", package=tmp_path, exports=True)):
        assert done == [((model, tmp_path), {"format": "aot", "progress": False}, 1)]


def test_a_device_compiles_in_the_midst_of_its_first_picture(monkeypatch):
    monkeypatch.setattr(ready.torch, "compile", lambda denoiser: denoiser)
    with one_thread(), opened(job("one-device", "inductor")) as found:
        assert found.timed is not None
        assert found.timed.seconds == []
        found.timed.seconds, found.timed.compilations = [5.0, 1.0, 1.0], [3, 3, 3]
        monkeypatch.setattr(lower, "compilations", lambda: 4)
        taken = found.taken(found.watch(), 7.0)
    assert (taken["compile_seconds_cold"], taken["graphs"], taken["recompiles"]) == (4.0, (3,), 1)
    assert (taken["first_picture_seconds"], taken["denoiser_ms"]) == (7.0, 1000.0)


def test_a_watch_keeps_the_most_that_it_saw(monkeypatch):
    seen = iter([30, 5, 20, 9])
    monkeypatch.setattr(ranks, "field", lambda file, name: next(seen))
    watch = ranks.Watch([1, 2])
    watch.look()
    assert watch.peak_pss == [30, 9]


def test_fields_of_a_process_are_in_bytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    resident = pages * os.sysconf("SC_PAGE_SIZE")
    assert ranks.field("/proc/self/status", "VmHWM") >= 0.5 * resident > 1e6
