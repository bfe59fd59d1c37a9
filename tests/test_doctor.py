"""`hybridiff doctor`: what it finds by trying, here and on machines that lack something."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import hybridiff_compile
from hybridiff_compile.cli import app, findings, trials
from hybridiff_compile.cli.findings import Finding
from hybridiff_compile.errors import WorkerError
from hybridiff_compile.planning.devices import Link

ROOT = Path(__file__).parents[1]
BAD, GOOD = Finding("it", "does not work", False), Finding("it", "works")


def test_doctor_tries_two_ranks_and_says_what_is_here() -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    assert f"+ torch: {torch.__version__}" in result.output
    assert f"+ hybridiff-compile: {hybridiff_compile.__version__}" in result.output
    assert re.search(r"\+ gloo on loopback: works between two processes; \d+ MB/s", result.output)
    bits = r"\+ two ranks on 2 CPU cores: work; a picture of 2 steps has the bits of one device"
    assert re.search(bits, result.output)
    assert re.search(r"\+ \[onnx\]: onnx \d", result.output)


@pytest.mark.parametrize(("found", "code"), [([BAD], 1), ([BAD, GOOD], 0)])
def test_exit_code_is_1_where_no_two_ranks_work(
    monkeypatch: pytest.MonkeyPatch, found: list[Finding], code: int
) -> None:
    for where, name in ((findings, "versions"), (findings, "devices"), (findings, "extras")):
        monkeypatch.setattr(where, name, lambda: [BAD])
    monkeypatch.setattr(trials, "links", lambda: [GOOD])
    monkeypatch.setattr(trials, "backends", lambda: [BAD])
    monkeypatch.setattr(trials, "two_ranks", lambda: found)
    result = CliRunner().invoke(app, ["doctor"])
    assert (result.exit_code, "two ranks cannot work here" in result.output) == (code, code == 1)


def test_one_core_has_no_two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    (found,) = trials.two_ranks()
    assert not found.is_good
    assert "need two cores" in found.says


def test_a_picture_that_fails_is_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise WorkerError("rank 1 is gone.\nand more")

    monkeypatch.setattr(hybridiff_compile, "optimize", fail)
    (found,) = trials.two_ranks()
    assert (found.says, found.is_good) == ("do not work: rank 1 is gone", False)


class Fake:
    """A model whose picture was made by one rank, or is off."""

    def __init__(self, ranks: int, off: float) -> None:
        self.report, self.off = SimpleNamespace(ranks=ranks), off

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def verify(self, prompt: str, **call: Any) -> Any:
        return SimpleNamespace(max_abs_error=self.off)


@pytest.mark.parametrize(
    ("fake", "says", "is_good"),
    [
        (Fake(1, 0.0), "do not work: one rank made the picture", False),
        (Fake(2, 1e-3), "work; a picture of 2 steps is off by 1.0e-03", True),
    ],
)
def test_a_picture_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, fake: Fake, says: str, is_good: bool
) -> None:
    monkeypatch.setattr(hybridiff_compile, "optimize", lambda pipe, mode: fake)
    (found,) = trials.two_ranks()
    assert found.says.startswith(says)
    assert found.is_good is is_good


def compiler(name: str) -> Finding:
    """What is said of Inductor where this is the C++ compiler that it finds."""
    from torch._inductor import config

    with config.patch({"cpp.cxx": (None, name)}):
        return trials.backends()[0]


def test_a_compiler_that_is_missing_or_fails_is_told_with_the_fix(tmp_path: Path) -> None:
    script = tmp_path / "c++"
    script.write_text("#!/bin/sh\n[ $1 = --version ] && exit\necho no Python.h >&2; exit 1\n")
    script.chmod(0o755)
    for name, why in (("no-such-c++", "No working C++ compiler"), (str(script), "no Python.h")):
        found = compiler(name)
        assert not found.is_good
        assert why in found.says
        assert "install g++" in found.says


def test_a_compiler_that_works_is_named(tmp_path: Path) -> None:
    script = tmp_path / "c++"
    script.write_text("#!/bin/sh\n[ $1 = --version ] && echo c++ 99.1; exit 0\n")
    script.chmod(0o755)
    found = compiler(str(script))
    assert found.is_good
    assert "c++ 99.1 builds" in found.says


def test_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = {
        extra: tuple(re.split("[>=]", need)[0].replace("-", "_") for need in needs)
        for extra, needs in project["optional-dependencies"].items()
        if extra != "dev"
    }
    assert listed == findings.EXTRAS


def test_an_extra_that_is_missing_or_broken_is_told_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken_extra.py").write_text("raise ImportError('libcudart is not there')")
    monkeypatch.syspath_prepend(tmp_path)
    known = {"none": ("no_such_module",), "broken": ("numpy", "broken_extra"), "here": ("numpy",)}
    monkeypatch.setattr(findings, "EXTRAS", known)
    none, broken, here = findings.extras()
    fix = "pip install hybridiff-compile[none]"
    assert none == Finding("[none]", f"no_such_module is not installed; {fix}", False)
    assert not broken.is_good
    assert "broken_extra is there, but cannot be imported: libcudart is not there" in broken.says
    assert here.is_good
    assert here.says.startswith("numpy 2.")


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Any:
    """So many GPUs, whose links all reach each other but do not work."""

    def measure(first: torch.device, second: torch.device) -> Link:
        if first.type == "cuda":
            raise WorkerError("NCCL says no")
        return Link("here", rate=5e8, latency=1e-4)

    def give(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    about = SimpleNamespace(name="Card", total_memory=2**34)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: about)
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda a, b: (a, b) == (0, 1))
    monkeypatch.setattr(trials.link_probe, "measure", measure)
    return give


def test_gpus_are_computed_on_and_their_links_tried(
    monkeypatch: pytest.MonkeyPatch, cards: Any
) -> None:
    def ones(size: int, device: str) -> torch.Tensor:
        if device == "cuda:1":
            raise RuntimeError("no kernel image is available\nCompile with ...")
        return torch.zeros(size)

    cards(3)
    monkeypatch.setattr(torch, "ones", ones)
    _, first, second, _, _ = findings.devices()
    assert first == Finding("cuda:0", "Card, 16 GiB")
    assert second.says == "Card, 16 GiB; does not compute: no kernel image is available"
    assert not second.is_good
    loopback, _, *pairs = trials.links()
    assert loopback.says == "works between two processes; 500 MB/s after 100 us"
    names = ["cuda:0 and cuda:1", "cuda:0 and cuda:2", "cuda:1 and cuda:2"]
    assert [pair.what for pair in pairs] == names
    assert pairs[0].says == "reach each other's memory; does not work: NCCL says no"
    assert pairs[1].says.startswith("copy through the host's memory")
    assert not any(pair.is_good for pair in pairs)


@pytest.mark.parametrize(("count", "made_on"), [(0, ["cpu"]), (1, ["cpu"]), (2, ["cpu", "cuda:0"])])
def test_two_ranks_are_tried_on_the_cpu_and_on_two_gpus(
    monkeypatch: pytest.MonkeyPatch, cards: Any, count: int, made_on: list[str]
) -> None:
    tried = []

    def picture(name: str, device: torch.device) -> Finding:
        tried.append(str(device))
        return GOOD

    cards(count)
    monkeypatch.setattr(trials, "_picture", picture)
    found = trials.two_ranks()
    assert tried == made_on
    assert [f.what for f in found if not f.is_good] == ["two ranks on one GPU"] * (count == 1)


def test_tensorrt_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, cards: Any) -> None:
    monkeypatch.setattr(trials, "_inductor", lambda: GOOD)
    cards(0)
    assert trials.backends()[1:] == [Finding("backend='tensorrt'", "needs an NVIDIA GPU", False)]
    cards(1)
    _, triton, engine = trials.backends()
    assert triton.what == "backend='inductor' on a GPU"
    assert "pip install hybridiff-compile[tensorrt]" in engine.says
    assert not engine.is_good
