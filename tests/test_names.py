"""The library knows no pipeline and no model by name: what one does is found from what it does."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import diffusers
import pytest

ROOT = Path(__file__).parents[1]
#: Planning without weights needs a table of architectures; measuring has models of its own.
EXEMPT = {"planning", "bench", "cli"}


def sources() -> Iterator[Path]:
    for folder in (ROOT / "hybridiff_compile", ROOT / "passes"):
        for path in folder.rglob("*.py"):
            if not EXEMPT & set(path.relative_to(ROOT).parts):
                yield path


def names() -> set[str]:
    """Classes of diffusers' pipelines and models, but those that any pipeline has."""
    found = diffusers._import_structure  # pyright: ignore[reportAttributeAccessIssue]
    kinds = [name for part in found.values() for name in part]
    wanted = re.compile(r"(Pipeline|Model|Transformer\w*|UNet\w*|\dD|Blocks)$")
    general = {"DiffusionPipeline", "ModularPipeline", "ModularPipelineBlocks", "UNet"}
    return {name for name in kinds if wanted.search(name)} - general


def constants(path: Path) -> Iterator[str]:
    """Names and texts in a file's code, its docstrings left out."""
    tree = ast.parse(path.read_text())
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute | ast.alias):
            yield getattr(node, "id", None) or getattr(node, "attr", None) or node.name  # pyright: ignore
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
        ):
            yield node.value


def test_there_are_names_to_look_for():
    assert {"WanPipeline", "UNet2DConditionModel", "WanTransformer3DModel"} <= names()


@pytest.mark.parametrize("path", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in sources()])
def test_no_file_knows_a_pipeline_or_a_model(path):
    known = names()
    for text in constants(path):
        assert not known & set(re.findall(r"\w+", text)), f"{path.name}: {text}"
