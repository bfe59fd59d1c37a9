"""examples/diffusers_suite.py on a tiny checkout: both ways, what only fails with us, what dies."""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
MODULES = ("diffusers_suite", "suite_hub", "suite_report", "suite_run")

PICTURES = """
import pytest
import torch
from hybridiff_compile.bench import models

MADE = []
LATENT = dict(num_inference_steps=2, output_type="latent")

def pipeline():
    pipe = models.load("tiny-sdxl")
    pipe.set_progress_bar_config(disable=True)
    return pipe

def test_makes_a_picture():
    pipe = pipeline().to("cpu")
    assert pipe("a cat", **LATENT).images.shape == (1, 4, 16, 16)
    MADE.append(pipe)

def test_the_one_before_was_restored():
    assert "forward" not in vars(MADE[0].unet)

def test_is_never_moved():
    assert pipeline()("a cat", **LATENT).images.isfinite().all()

def test_looks_inside_forward():
    pipe = pipeline().to("cpu")
    assert "forward" not in vars(pipe.unet), "forward is\\nsomebody else's"

def test_is_refused():
    pipe = pipeline()
    del pipe.unet
    pipe.to("cpu")

def test_fails_anyway():
    raise RuntimeError("in any case")

@pytest.mark.skip
def test_is_skipped():
    raise AssertionError
"""

TROUBLE = """
import os, signal, subprocess, sys, time

def test_before():
    pass

def test_dies():
    os.kill(os.getpid(), signal.SIGKILL)

def test_hangs():
    time.sleep(60)

def test_leaves_a_process_behind():
    code = "import time; time.sleep(60)"
    subprocess.Popen([sys.executable, "-S", "-c", code], start_new_session=True)

def test_behind():
    assert os.environ["HF_HUB_OFFLINE"] == "1"
"""


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules of the suite, as the command imports them."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    yield importlib.import_module
    for name in MODULES:
        sys.modules.pop(name, None)


def checkout(folder: Path, **files: str) -> Path:
    tests = folder / "checkout" / "tests" / "pipelines"
    for name, text in files.items():
        (tests / name).mkdir(parents=True)
        (tests / name / f"test_{name}.py").write_text(text)
    return folder / "checkout"


@pytest.mark.slow
def test_a_run_shows_what_passes_only_without_us(
    suite: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = checkout(tmp_path, pictures=PICTURES)
    (tmp_path / "suite.hub").mkdir()  # nothing is wanted from it here
    (tmp_path / "known.toml").write_text(
        '[[known]]\ntest = "*::test_is_never_moved"\nreason = "it passes"\n'
    )
    out = tmp_path / "suite.json"
    command = [str(here), "--known", str(tmp_path / "known.toml"), "--out", str(out)]
    assert suite("diffusers_suite").main(command) == 1
    said, report = capsys.readouterr().out, json.loads(out.read_text())

    pictures = report["files"]["tests/pipelines/pictures/test_pictures.py"]
    assert pictures["without"] == {"passed": 5, "failed": 1, "skipped": 1}
    assert pictures["with"] == {"passed": 4, "failed": 2, "skipped": 1}
    assert pictures["several_ranks"] == 2
    (bad,) = report["only_with_us"]
    assert bad["test"].endswith("::test_looks_inside_forward")
    assert "AssertionError: forward is ... " in said
    assert len(report["settled"]) == 1
    assert "known exceptions that pass" in said
    assert not report["not_restored"]
    assert not report["left_behind"]
    assert [r for r in report["refused"] if "has no denoiser" in r]

    # With the exception known, from the first run's results: nothing is run again.
    (tmp_path / "known.toml").write_text(
        '[[known]]\ntest = "*::test_looks_inside_forward"\nreason = "it looks\\ninside"\n'
    )
    parts = {p: p.read_bytes() for p in (tmp_path / "suite.parts").iterdir()}
    assert suite("diffusers_suite").main([*command, "--without-us", str(out)]) == 0
    assert parts == {p: p.read_bytes() for p in (tmp_path / "suite.parts").iterdir()}
    assert "it looks inside" in capsys.readouterr().out


@pytest.mark.slow
def test_a_test_that_dies_or_hangs_costs_only_itself(suite: Any, tmp_path: Path) -> None:
    run, report = suite("suite_run"), suite("suite_report")
    here = checkout(tmp_path, trouble=TROUBLE, broken="import no_such_module")
    run._LEFT_SECONDS = 1
    one = run.Suite(here, tmp_path / "parts", tmp_path / "hub", 2)
    broken, file = run.find_files(here, [])
    one.run(file, run.WITHOUT_US)
    lines = report.read_lines(one.part(file, run.WITHOUT_US))
    outcomes = {t.split("::")[1]: r["outcome"] for t, r in report.results(lines).items()}
    assert outcomes == {
        "test_before": "passed",
        "test_dies": "failed",
        "test_hangs": "failed",
        "test_leaves_a_process_behind": "passed",
        "test_behind": "passed",
    }
    errors = [r["error"] for r in report.results(lines).values() if "error" in r]
    assert "SIGKILL" in errors[0]
    assert "imeout" in errors[1]
    (left,) = [x["what"] for x in lines if x.get("event") == "left"]
    assert "time.sleep(60)" in left

    one.run(broken, run.WITHOUT_US)
    (failed,) = report.results(report.read_lines(one.part(broken, run.WITHOUT_US))).values()
    assert failed["outcome"] == "failed"
    assert failed["error"].startswith("not collected: ")
    assert "no_such_module" in failed["error"]
    pid = int(left.split("process ")[1].split(":")[0])
    assert not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_text()


@pytest.mark.slow
def test_a_stopped_run_ends_its_process_and_goes_on_later(suite: Any, tmp_path: Path) -> None:
    run, report = suite("suite_run"), suite("suite_report")
    release = tmp_path / "release"
    waits = "import os, time\n\ndef test_first():\n    pass\n\ndef test_waits():\n"
    waits += f"    while not os.path.exists({str(release)!r}):\n        time.sleep(0.05)\n"
    here = checkout(tmp_path, waits=waits)
    one = run.Suite(here, tmp_path / "parts", tmp_path / "hub", 60)
    (file,) = run.find_files(here, [])
    part = one.part(file, run.WITHOUT_US)

    def stop_in_the_second_test() -> None:
        while report.unfinished(report.read_lines(part)) is None or "test_waits" not in (
            report.unfinished(report.read_lines(part)) or ""
        ):
            time.sleep(0.05)
        one.stop.set()

    thread = threading.Thread(target=stop_in_the_second_test)
    thread.start()
    with pytest.raises(run.StoppedError):
        one.run(file, run.WITHOUT_US)
    thread.join()
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            assert str(part).encode() not in cmdline.read_bytes()
    assert not report.has_ended(report.read_lines(part))

    release.touch()
    part.write_text(part.read_text() + '{"test": "cut')  # as a process that is killed leaves it
    one.stop.clear()
    one.run(file, run.WITHOUT_US)
    lines = report.read_lines(part)
    assert [line["test"] for line in lines if line.get("outcome") == "passed"] == [
        f"{file}::test_first",
        f"{file}::test_waits",
    ]


def test_only_what_passes_without_us_counts(suite: Any) -> None:
    report = suite("suite_report")
    passed, skipped = {"outcome": "passed"}, {"outcome": "skipped"}
    failed = {"outcome": "failed", "error": "E: 1"}
    other = {"outcome": "failed", "error": "F: 1"}
    before = {"a": passed, "b": failed, "c": skipped, "d": passed, "e": failed, "f": failed}
    after = {"a": failed, "b": other, "c": failed, "n": failed, "e": failed | {"error": "E: 2"}}
    after |= {"f": passed, "s": skipped}
    found = report.summarize({"f": before, "g": {}}, {"f": after, "g": after}, {"a": "known"})
    assert [(b["test"], b["known"]) for b in found["only_with_us"]] == [
        ("a", "known"),
        ("c", None),
        ("n", None),
    ]
    assert found["not_run"] == ["d"]
    assert [b["test"] for b in found["other_error"]] == ["b"]
    assert "fail both ways, with us by another kind of error: 1" in report.text(
        {**found, "left_behind": []}
    )
    found = report.summarize({"f": before}, {"f": {"a": skipped}}, {})
    assert [b["test"] for b in found["only_with_us"]] == ["a"]


def test_a_known_exception_without_a_reason_is_refused(suite: Any, tmp_path: Path) -> None:
    (tmp_path / "known.toml").write_text('[[known]]\ntest = "*::test_x"\nreason = " "\n')
    with pytest.raises(ValueError, match=r"\*::test_x has no reason"):
        suite("suite_report").read_known(tmp_path / "known.toml")


def test_each_known_exception_of_the_suite_has_its_reason(suite: Any) -> None:
    known = suite("suite_report").read_known(EXAMPLES / "suite_known.toml")
    assert all(len(why) > 20 for why in known.values())


@pytest.mark.parametrize("wanted", ["no_such", "../../elsewhere.py"])
def test_a_file_that_is_not_there_is_named(suite: Any, tmp_path: Path, wanted: str) -> None:
    here = checkout(tmp_path, trouble=TROUBLE)
    with pytest.raises(ValueError, match=wanted):
        suite("suite_run").find_files(here, [wanted])
    assert suite("diffusers_suite").main([str(tmp_path), "--out", str(tmp_path / "o.json")]) == 2


def test_the_stand_ins_are_found_without_a_network(suite: Any, tmp_path: Path) -> None:
    home = tmp_path / "hub"
    suite("suite_hub").build(home)
    before = {p: p.stat().st_mtime_ns for p in home.rglob("*")}
    suite("suite_hub").build(home)
    assert before == {p: p.stat().st_mtime_ns for p in home.rglob("*")}
    code = """
from transformers import AutoTokenizer, CLIPTokenizer, T5EncoderModel
clip = CLIPTokenizer.from_pretrained("hf-internal-testing/tiny-random-clip")
assert clip("a cat").input_ids[0] == 0 and clip("a cat").input_ids[-1] == 999
for name in ("hf-internal-testing/dummy-gemma", "hf-internal-testing/tiny-random-t5"):
    tokenizer = AutoTokenizer.from_pretrained(name)
    assert tokenizer("a cat").input_ids != tokenizer("a dog").input_ids
T5EncoderModel.from_pretrained("hf-internal-testing/tiny-random-t5")
"""
    env = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
