"""Imports go one way; a worker stays light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "hybridiff_compile"

#: What each part may import of the package, itself apart. The four in the middle never meet.
MIDDLE = {"capture", "passes", "lower", "runtime"}
GROUND = {"config", "errors", "arguments", "blocks"}
TYPES = {"ir", "links", "ops", "layout", "randomness", "adapters"}
ALLOWED = {
    "errors": set(),
    "blocks": set(),
    "arguments": {"errors", "blocks"},
    "style": set(),
    "config": {"errors", "arguments"},
    **{name: GROUND | TYPES for name in TYPES},
    "debug": GROUND | TYPES,
    **{name: GROUND | TYPES | {"debug", "share", "style"} for name in MIDDLE},
    "worker": GROUND | TYPES | MIDDLE,
    "entry": GROUND | TYPES | MIDDLE | {"debug"},
    "here": {"randomness"},
    "quality": set(),
    "share": set(),
    "looking": GROUND | TYPES | MIDDLE,
    "way": GROUND | TYPES | MIDDLE | {"entry"},
    "changes": MIDDLE,
    "ways": GROUND | TYPES | MIDDLE | {"changes", "entry", "here", "looking", "way"},
    "structures": {"capture", "ways"},
    "ranks": GROUND | TYPES | MIDDLE | {"entry"},
    "loading": GROUND | TYPES | MIDDLE | {"entry", "ranks"},
    "denoiser": GROUND
    | TYPES
    | MIDDLE
    | {"changes", "debug", "entry", "here", "loading", "ranks", "structures", "way", "ways"},
    "answers": GROUND | TYPES | MIDDLE | {"denoiser", "entry", "here", "looking", "way"},
    "session": GROUND | TYPES | MIDDLE | {"answers", "denoiser", "entry", "here", "ranks"},
    "package": GROUND | TYPES | MIDDLE | {"entry", "session"},
    "placing": {"errors", "runtime"},
    "verification": GROUND | {"runtime", "quality", "session"},
    "model": GROUND | TYPES | {"runtime", "session", "verification"},
    "api": GROUND
    | TYPES
    | MIDDLE
    | {"debug", "entry", "placing", "worker", "session", "model", "package"},
}
#: These may import everything that a user may.
TOP = {"bench", "cli", "planning", "serving", ""}


def sources() -> Iterator[tuple[str, Path]]:
    """(part of the package, file) of every module; passes/ is read at the top level."""
    files = [p for p in (ROOT / PACKAGE).rglob("*.py") if p.parts[-2] != "passes"]
    for path in (*files, *(ROOT / "passes").glob("*.py")):
        inner = path.relative_to(ROOT / PACKAGE if PACKAGE in path.parts else ROOT)
        yield (
            ("" if inner.name == path.name == "__init__.py" else inner.parts[0]).removesuffix(
                ".py"
            ),
            path,
        )


def imported(path: Path) -> set[str]:
    """Full names of what a file imports, anywhere in it; relative imports are not used here."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it goes"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def parts(path: Path) -> set[str]:
    """Parts of the package that a file imports."""
    inner = [n.split(".") for n in imported(path) if n.split(".")[0] == PACKAGE]
    return {n[1] for n in inner if len(n) > 1 and n[1] != "__version__"}


ALL = [pytest.param(part, path, id=str(path.relative_to(ROOT))) for part, path in sources()]


def test_every_part_of_the_package_has_its_place():
    found = {part for part, _ in sources()}
    assert found >= set(ALLOWED)
    assert found <= set(ALLOWED) | TOP


@pytest.mark.parametrize(("part", "path"), ALL)
def test_imports_go_one_way(part, path):
    if part not in TOP:
        wrong = parts(path) - ALLOWED[part] - {part}
        assert not wrong, f"{part} must not import {sorted(wrong)}"


@pytest.mark.parametrize(("part", "path"), ALL)
def test_only_ops_names_communication_ops(part, path):
    if part != "ops":
        text = path.read_text()
        for name in (
            "_c10d_functional",
            "_distributed_c10d",
            "isend",
            "irecv",
            "wait_tensor",
            "ops.hybridiff",
        ):
            assert name not in text, f"{path.name} names {name}"


@pytest.mark.parametrize(("part", "path"), ALL)
def test_the_core_imports_no_diffusers(part, path):
    if part not in TOP:
        assert not {n for n in imported(path) if n.split(".")[0] in ("diffusers", "transformers")}


def test_worker_imports_no_diffusers_tracer_or_compiler():
    code = (
        f"import {PACKAGE}.worker, sys, torch; from {PACKAGE} import ops; "
        "stamp = torch.tensor([0, 3]); ops.GUARD(stamp, stamp, 0, 1); print(*sorted(sys.modules))"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, check=True, timeout=120)
    loaded = set(done.stdout.split())
    assert f"{PACKAGE}.runtime.rank" in loaded
    heavy = {"diffusers", "transformers", "accelerate", "matplotlib", "pydantic", "rich", "typer"}
    assert not heavy & loaded
    assert not {"torch._dynamo", "torch._inductor"} & loaded
    own = {f"{PACKAGE}.{name}" for name in ("api", "session", "capture", "passes", "bench", "cli")}
    assert not own & loaded
