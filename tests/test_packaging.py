import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests import wheels
from tests.wheels import PACKAGE, ROOT


@pytest.fixture(scope="module")
def settings() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names of the files in a wheel without the weights."""
    path = wheels.build(tmp_path_factory.mktemp("checkout"), "*.safetensors")
    with zipfile.ZipFile(path) as file:
        return file.namelist()


def test_listed_packages_are_the_folders_with_an_init_file_and_two_of_data(settings):
    found = {PACKAGE, f"{PACKAGE}.passes", f"{PACKAGE}.assets", f"{PACKAGE}.planning.configs"}
    for path in (ROOT / PACKAGE).rglob("__init__.py"):
        found.add(".".join(path.parent.relative_to(ROOT).parts))
    assert sorted(found) == sorted(settings["tool"]["setuptools"]["packages"])


def test_oldest_versions_are_the_lower_bounds(settings):
    run = [sys.executable, ".ci/oldest.py"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    oldest = done.stdout.split()
    needs = [n.replace(">=", "==") for n in settings["project"]["dependencies"]]
    assert set(needs) - set(oldest) == {"torch==2.13"}
    assert "setuptools==77.0.3" in oldest
    assert all(re.fullmatch(r"[a-z0-9-]+==[\d.]+", need) for need in oldest)
    assert "torch-tensorrt" not in done.stdout


def test_version_is_that_of_the_package(settings):
    import hybridiff_compile

    assert settings["project"]["version"] == hybridiff_compile.__version__


def test_passes_is_found_inside_the_package():
    spec = importlib.util.find_spec(f"{PACKAGE}.passes")
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).resolve() == ROOT / "passes" / "__init__.py"


def test_type_checkers_find_passes_through_a_relative_link():
    link = ROOT / PACKAGE / "passes"
    assert link.is_symlink()
    assert link.readlink() == Path("../passes")


def test_passes_refuses_to_be_imported_from_the_root():
    done = subprocess.run(
        [sys.executable, "-c", "import passes"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert re.search(r"ImportError: import hybridiff_compile\.passes", done.stderr)


def test_wheel_holds_only_the_package(wheel):
    assert {name.split("/")[0].split("-")[0] for name in wheel} == {PACKAGE}
    assert {n.split("/")[0] for n in wheel if n.endswith(".py")} == {PACKAGE}


def test_wheel_holds_every_module(wheel):
    own = {p.relative_to(ROOT).as_posix() for p in (ROOT / PACKAGE).rglob("*.py")}
    passes = {f"{PACKAGE}/passes/{p.name}" for p in (ROOT / "passes").glob("*.py")}
    assert (own | passes) == {n for n in wheel if n.endswith(".py")}


def test_wheel_holds_assets_and_type_marker(wheel):
    assets = ROOT / PACKAGE / "assets"
    bulk = ".safetensors"
    wanted = [p for p in assets.rglob("*") if p.is_file() and p.suffix != bulk]
    assert wanted
    assert {p.relative_to(ROOT).as_posix() for p in wanted} <= set(wheel)
    assert {f"{PACKAGE}/py.typed", f"{PACKAGE}/serving/page.html"} <= set(wheel)


@pytest.fixture(scope="module")
def make() -> dict[str, list[str]]:
    """The Makefile's recipes by target."""
    found: dict[str, list[str]] = {}
    target = ""
    for line in (ROOT / "Makefile").read_text().splitlines():
        if line.startswith("\t"):
            found[target].append(line.strip())
        elif match := re.match(r"([\w./-]+):(?!=)", line):
            target = match[1]
            found[target] = []
    return found


def test_the_demo_is_quick_and_the_full_one_is_not(make):
    assert make["demo"] == ["$(BIN)/hybridiff demo --quick --out demo"]
    assert make["demo-full"] == ["$(BIN)/hybridiff demo --out demo"]


def test_each_step_of_the_set_up_says_what_it_installs_and_how_long(make):
    recipe = make[".venv/ready"]
    told = [i for i, line in enumerate(recipe) if re.search(r'echo "\d of 4: .*\(about ', line)]
    assert [recipe[i][len('@echo "')] for i in told] == ["1", "2", "3", "4"]
    # No part is silent: each one stands behind the line that tells it.
    silent = [line for line in recipe[told[0] :] if "install" in line and "@echo" not in line]
    assert len(silent) == 4
    assert all(re.match(r"@(\w+=\w+ )?\$\((BIN|PYTHON)\)/?", recipe[i + 1]) for i in told)
