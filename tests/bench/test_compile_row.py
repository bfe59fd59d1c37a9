import os
import time
from pathlib import Path

import pytest
import torch

import hybridiff_compile
from hybridiff_compile import lower
from hybridiff_compile.bench import compile_row, ranks
from hybridiff_compile.bench.compile_row import Job, Timed, measure, schedule, step_ms_by_phase
from hybridiff_compile.bench.figures import Row
from hybridiff_compile.config import UNET_SWITCHING, Config, SwitchSettings
from hybridiff_compile.ir import Phase
from hybridiff_compile.runtime.report import RunReport, StepRecord


@pytest.mark.parametrize("steps", range(6, 60))
def test_the_papers_schedule_swaps_phases_twice_in_a_run(steps):
    config = Config(mode="paper", **schedule(steps))  # pyright: ignore[reportArgumentType]
    switching = config.switching(UNET_SWITCHING, steps)
    assert isinstance(switching, SwitchSettings)
    assert switching.tau1 is not None
    assert min(switching.tau1, switching.k, steps - switching.tau1 - switching.k) >= 2


def test_only_the_papers_mode_is_given_a_schedule():
    def settings(mode):
        return Job("tiny-sd3", mode, "inductor", "stage", 9, 1).settings()

    assert settings("exact") == {"mode": "exact"}
    assert settings("paper") == {"mode": "paper", "tau1": 3, "k": 3}


def test_a_timed_forward_notes_every_call_and_what_it_compiled(monkeypatch):
    compiled = iter([1, 1, 2])
    monkeypatch.setattr(lower, "compilations", lambda: next(compiled))
    timed = Timed(lambda x, scale: x * scale)
    assert [timed(x, scale=2) for x in (1, 2, 3)] == [2, 4, 6]
    assert timed.compilations == [1, 1, 2]
    assert len(timed.seconds) == 3
    assert min(timed.seconds) >= 0


def test_steps_are_medians_of_each_phase_over_all_pictures():
    def report(*milliseconds):
        phases = (Phase.SERIAL, Phase.PIPELINED)
        steps = (
            StepRecord(i, phases[i % 2], phases[i % 2].kind, "", m / 1000, None, None)
            for i, m in enumerate(milliseconds)
        )
        return RunReport("paper", 2, tuple(steps), 1, 2, 0, (1.0,))

    found = step_ms_by_phase([report(10, 4, 12, 5), report(100, 6)])
    assert found == pytest.approx({"serial": 12, "pipelined": 5})


def row(job):
    """A measured job as a row of figures, which refuses unknown keys and impossible values."""
    found = measure(job)
    ready = found.pop("ready_seconds", None)
    assert torch.get_num_threads() >= 1
    return ready, Row(command="bench", model=job.model, mode=job.mode, **found)


def test_one_device_as_it_is():
    ready, found = row(Job("tiny-sd3", "one-device", "eager", None, 6, 1))
    assert ready is None
    assert found.seconds is not None
    assert found.first_picture_seconds is not None
    assert found.step_ms_by_phase is not None
    assert 0 < 6 * found.step_ms_by_phase["serial"] < 1000 * found.seconds
    assert found.seconds < 10 * found.first_picture_seconds
    assert (found.steps, found.runs, found.height, found.width) == (6, 1, 64, 64)
    assert found.steps_by_phase == {"serial": 6, "pipelined": 0, "forecast": 0}
    assert (found.graphs, found.recompiles, found.bytes_sent) == (None, None, None)
    assert found.peak_rss_mb is not None
    assert found.peak_pss_mb is not None
    assert len(found.peak_rss_mb) == 1
    assert found.peak_rss_mb[0] > found.peak_pss_mb[0] > 100


def test_two_ranks_with_both_phases():
    """What does the compiling is exchangeable: eager compiles nothing, and is soon ready."""
    ready, found = row(Job("tiny-sd3", "paper", "eager", "stage", 6, 1))
    assert ready is not None
    assert found.first_picture_seconds is not None
    assert 0 < ready < found.first_picture_seconds
    assert found.step_ms_by_phase is not None
    assert set(found.step_ms_by_phase) == {"serial", "pipelined"}
    assert found.steps_by_phase == {"serial": 4, "pipelined": 2, "forecast": 0}
    assert (found.tau1, found.k, found.graphs, found.recompiles) == (2, 2, (0, 0), 0)
    assert found.bytes_sent
    assert found.peak_rss_mb is not None
    assert found.peak_pss_mb is not None
    assert len(found.peak_rss_mb) == len(found.peak_pss_mb) == 2


class FakeModel:
    """A model that takes a while to start, and longer to be ready."""

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


def test_without_runs_only_the_time_until_ready_is_measured(monkeypatch):
    made = []

    def optimize(pipe, **settings):
        made.append((FakeModel(), settings))
        return made[0][0]

    monkeypatch.setattr(hybridiff_compile, "optimize", optimize, raising=False)
    job = Job("tiny-sd3", "paper", "inductor", "whole", 9, 0)
    assert measure(job) == {"ready_seconds": pytest.approx(0.2, abs=0.04)}
    model, settings = made[0]
    assert settings == {**job.settings(), "backend": "inductor", "scope": "whole"}
    assert model.calls == [job.call()]


def test_a_load_is_measured_from_its_beginning(monkeypatch):
    def load(folder, pipe):
        assert folder == "package"
        return FakeModel()

    monkeypatch.setattr(hybridiff_compile, "load", load, raising=False)
    job = Job("tiny-sd3", "exact", "aot", "stage", 9, 0, package="package")
    assert measure(job)["ready_seconds"] >= 0.25


def test_a_package_is_exported_once_all_ranks_are_ready(monkeypatch):
    done, model = [], FakeModel()
    monkeypatch.setattr(hybridiff_compile, "optimize", lambda pipe, mode: model, raising=False)

    def export(*given, **how):
        done.append((given, how, len(model.calls)))

    monkeypatch.setattr(hybridiff_compile, "export", export, raising=False)
    job = Job("tiny-sd3", "exact", "aot", "stage", 9, 0, package="package")
    assert compile_row.export(job) == {}
    assert done == [((model, "package"), {"format": "aot", "progress": False}, 1)]


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
