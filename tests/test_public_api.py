import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import hybridiff_compile

ROOT = Path(__file__).parents[1]
PUBLIC = [n for n in hybridiff_compile.__all__ if not n.startswith("__")]


def members() -> list[tuple[str, object]]:
    """Public methods and properties of the public classes."""
    found = []
    for name in PUBLIC:
        value = getattr(hybridiff_compile, name)
        if inspect.isclass(value):
            own = vars(value).items()
            found += [(f"{name}.{n}", m) for n, m in own if not n.startswith("_") and _is_code(m)]
    return found


def _is_code(member: object) -> bool:
    return isinstance(member, property) or inspect.isroutine(member)


def test_public_names_are_these():
    expected = "HybridiffError Model Phase Plan RunReport Verification"
    expected += " __version__ export load optimize plan"
    assert expected.split() == hybridiff_compile.__all__


@pytest.mark.parametrize("name", hybridiff_compile.__all__)
def test_public_name_can_be_imported_and_is_listed_with_its_home(name):
    value = getattr(hybridiff_compile, name)
    if name != "__version__":
        assert value.__name__ == name
        home = hybridiff_compile._HOMES[name]
        assert value.__module__ == f"hybridiff_compile.{home}"


def test_homes_and_listed_names_are_the_same():
    assert sorted(hybridiff_compile._HOMES) == sorted(PUBLIC)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"'hybridiff_compile' has no attribute 'optimise'"):
        _ = hybridiff_compile.optimise  # pyright: ignore[reportAttributeAccessIssue]


def test_star_import_gives_the_public_names_only():
    found: dict[str, object] = {}
    exec("from hybridiff_compile import *", found)
    assert sorted(n for n in found if not n.startswith("__")) == sorted(PUBLIC)


def test_importing_the_package_imports_neither_torch_nor_diffusers():
    code = "import hybridiff_compile, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = set(done.stdout.split())
    assert "hybridiff_compile" in loaded
    assert not {"torch", "diffusers"} & loaded


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_has_a_docstring_of_its_own(name):
    value = getattr(hybridiff_compile, name)
    assert value.__doc__
    if inspect.isclass(value):
        assert value.__doc__ != value.__mro__[1].__doc__


@pytest.mark.parametrize(("name", "member"), members(), ids=[n for n, _ in members()])
def test_public_member_has_a_docstring(name, member):
    assert inspect.getdoc(member), name


def test_optimize_documents_every_argument_and_its_errors():
    text = inspect.getdoc(hybridiff_compile.optimize)
    assert text is not None
    for name in inspect.signature(hybridiff_compile.optimize).parameters:
        assert name in text
    for section in ("Args:", "Returns:", "Raises:"):
        assert section in text


def test_every_error_is_a_hybridiff_error_with_a_docstring():
    from hybridiff_compile import errors

    kinds = [e for e in vars(errors).values() if inspect.isclass(e)]
    assert len(kinds) >= 8
    for kind in kinds:
        assert issubclass(kind, hybridiff_compile.HybridiffError)
        assert kind.__doc__
