"""README and docs: links lead somewhere, examples run, and commands are there."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from diffusers import DiffusionPipeline

import hybridiff_compile
from tests import pages, pipelines

EVERY_PAGE = pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)

#: A reader's pipeline is tiny-sd3 here. Whatever size and steps a page asks for, it makes these.
CALL = {
    "height": 64,
    "width": 64,
    "guidance_scale": 5.0,
    "max_sequence_length": 16,
    "num_inference_steps": 8,
}
#: Names that pages take for granted, besides `pipe`.
GIVEN = {"hybridiff_compile": hybridiff_compile}
#: Where a page's blocks need another pipeline than tiny-sd3: fewer layers are compiled sooner.
OTHER_PIPELINE = {"compile-and-deploy.md": pipelines.shallow}
#: Pages whose blocks compile, or trace a large model.
SLOW = ("compile-and-deploy.md", "planning.md")
#: Pages whose blocks cannot run in a test, and why.
NOT_RUN = {"serving.md": "they ask a server that runs; the tests of serving do that"}

RUNS = [
    pytest.param(page, id=page.name, marks=pytest.mark.slow if page.name in SLOW else ())
    for page in pages.PAGES
    if pages.blocks(page, "python") and page.name not in NOT_RUN
]


@EVERY_PAGE
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in pages.links(page):
        assert target.exists(), target
        assert not anchor or anchor in pages.anchors(target), f"{target.name}#{anchor}"


@EVERY_PAGE
def test_blocks_of_python_compile(page: Path) -> None:
    for _, block in pages.blocks(page, "python"):
        compile(block, page.name, "exec")


def test_every_page_can_be_found_from_the_readme() -> None:
    text = pages.PAGES[0].read_text()
    assert [page.name for page in pages.PAGES[1:] if f"docs/{page.name}" not in text] == []
    assert len(text.splitlines()) <= 150


def test_the_tables_above_name_pages_that_are_there() -> None:
    names = {page.name for page in pages.PAGES}
    assert {*OTHER_PIPELINE, *SLOW, *NOT_RUN} - names == set()


@EVERY_PAGE
def test_commands_are_there(page: Path) -> None:
    for words in pages.commands(page):
        assert pages.missing(words) == [], " ".join(words)


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("make dinner", "dinner"),
        ("hybridiff cook", "cook"),
        ("hybridiff plan --oven hot --device h100", "--oven"),
        ("python examples/cook.py", "examples/cook.py"),
        ("python examples/speed.py --oven", "--oven"),
        ("python -m pytest tests/test_oven.py", "tests/test_oven.py"),
        ("pytest tests/test_docs.py tests/test_oven.py", "tests/test_oven.py"),
    ],
)
def test_what_a_command_lacks_is_found(command: str, what: str) -> None:
    assert pages.missing(command.split()) == [what]


@EVERY_PAGE
def test_functions_that_a_page_names_are_there(page: Path) -> None:
    for file, name in pages.stations(page):
        lines = file.read_text().splitlines()
        heads = (f"def {name}(", f"class {name}:", f"class {name}(")
        assert any(line.strip().startswith(heads) for line in lines), f"{file.name}: {name}"


@EVERY_PAGE
def test_lines_that_a_page_changes_are_there(page: Path) -> None:
    every = "\n".join(file.read_text() for file in (pages.ROOT / "passes").glob("*.py"))
    for _, block in pages.blocks(page, "diff"):
        removed = [line[1:] for line in block.splitlines() if line.startswith("-")]
        assert [line for line in removed if line not in every.splitlines()] == []


def small(pipe: Any) -> Any:
    """A pipeline that makes the pictures of CALL, whatever it is asked for."""
    kind = type(pipe)

    @functools.wraps(kind.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return kind.__call__(self, *args, **{**kwargs, **CALL})

    pipe.__class__ = type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
    return pipe


def run_file(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Import what a page shows as a file; if it is a test, run it and write its golden text."""
    path = Path(name).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    root = "hybridiff_compile." if name.startswith("passes/") else ""
    spec = importlib.util.spec_from_file_location(
        root + name.removesuffix(".py").replace("/", "."), path
    )
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    with monkeypatch.context() as patched:
        patched.setenv("HYBRIDIFF_ACCEPT", "1")
        for test in [v for k, v in vars(module).items() if k.startswith("test_")]:
            test()
    return path.with_suffix(".expected")


@pytest.mark.parametrize("page", RUNS)
def test_blocks_of_python_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pipe = small(OTHER_PIPELINE.get(page.name, lambda: pipelines.load("tiny-sd3"))())
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", lambda *_, **__: pipe)
    names: dict[str, Any] = {**GIVEN, "pipe": pipe}
    golden = []
    try:
        for file, block in pages.blocks(page, "python"):
            if file:
                golden.append(run_file(file, block, monkeypatch))
            else:
                exec(compile(block, page.name, "exec"), names)
    finally:
        for value in list(names.values()):
            if isinstance(value, hybridiff_compile.Model):
                value.close()
    printed = capsys.readouterr().out
    written = [path.read_text() for path in golden if path.exists()]
    for _, shown in pages.blocks(page, "text"):
        assert shown in written or pages.is_part_of(shown, printed), shown
