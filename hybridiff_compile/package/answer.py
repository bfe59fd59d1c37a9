"""The tree around what a denoiser returns, read from a package: tuples, lists and dicts only.

torch's own reader of trees imports any module that a tree's context names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError
from torch.utils import _pytree as pytree

from hybridiff_compile.capture.prediction import Form
from hybridiff_compile.package.schema import Label, Record, Text


class _Tree(Record):
    type: Label | None
    context: Text | None
    children_spec: Annotated[tuple[_Tree, ...], Field(max_length=1000)]


_TREE = TypeAdapter(tuple[Literal[1], _Tree])
_Keys = Annotated[list[Label], Field(max_length=1000)]
_KEYS: TypeAdapter[list[str] | None] = TypeAdapter(_Keys | None)  # pyright: ignore[reportOperatorIssue]


def form(text: str, leaves: Sequence[tuple[int, ...] | None]) -> Form:
    """Read the form of a denoiser's answer.

    Args:
        text: `pytree.treespec_dumps` of its tree.
        leaves: shape of one row of each leaf, None for a leaf that is None.

    Raises:
        ValueError: it is no such tree.
    """
    try:
        _, tree = _TREE.validate_json(text, strict=True)
    except ValidationError as e:
        first = e.errors(include_url=False, include_context=False)[0]
        raise ValueError(f"answer: it is no tree of tuples and dicts: {first['msg']}") from None
    if _count(tree) != len(leaves):
        raise ValueError(f"answer: it has {_count(tree)} leaves, answer_leaves has {len(leaves)}")
    spec = pytree.treespec_loads(text)
    try:
        pytree.tree_unflatten([None] * len(leaves), spec)
    except (TypeError, ValueError) as e:
        raise ValueError(f"answer: the denoiser returns no such value: {e}") from None
    return Form(spec, tuple(leaves))


def _count(tree: _Tree) -> int:
    """Leaves of a tree; raises ValueError for a node of another kind."""
    if tree.type is None:
        if tree.context is not None or tree.children_spec:
            raise ValueError("answer: a leaf has no context and no children")
        return 1
    kind = pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE.get(tree.type)
    reader = kind and pytree.SUPPORTED_SERIALIZED_TYPES[kind].from_dumpable_context
    if kind is None or reader is not None or not issubclass(kind, tuple | list | dict):
        raise ValueError(f"answer: {tree.type!r} is no tuple, list or dict that is known here")
    try:
        keys = _KEYS.validate_json(tree.context or "", strict=True)
    except ValidationError:
        raise ValueError("answer: the context of a node is its keys, or null") from None
    if issubclass(kind, dict) != (keys is not None):
        raise ValueError("answer: a dict has keys, a tuple or list has none")
    if keys is not None and (len(set(keys)) != len(keys) or len(keys) != len(tree.children_spec)):
        raise ValueError("answer: a dict has as many children as keys")
    return sum(_count(child) for child in tree.children_spec)
