"""What the fields of a package's JSON may be: a type and a bound each, checked before any is used.

A file is data from outside: nothing in it is built, allocated or called until all of it is known
to be what the writer emits.
"""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from hybridiff_compile.errors import PackageError

#: No program or manifest comes near this; a larger file is refused unread.
MOST_BYTES = 64 << 20
#: Elements of a tensor.
MOST_ELEMENTS = 1 << 36

T = TypeVar("T")

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=300)]
Text = Annotated[str, StringConstraints(max_length=1 << 16)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=300)]
Size = Annotated[int, Field(ge=0, lt=2**31)]
Shape = Annotated[tuple[Size, ...], Field(max_length=16)]
Stride = Annotated[tuple[Annotated[int, Field(ge=0, le=MOST_ELEMENTS)], ...], Field(max_length=16)]
Rank = Annotated[int, Field(ge=0, le=1)]
Device = Annotated[str, StringConstraints(pattern=r"^(cpu|cuda(:[0-9]{1,2})?)$")]
Names = Annotated[tuple[Name, ...], Field(max_length=10_000)]


def _known_dtype(name: str) -> str:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or dtype_name(dtype) != name:
        raise ValueError("it is no dtype of torch")
    if name.startswith(("q", "bits")):  # torch's old quantized dtypes, and bits without a meaning
        raise ValueError("torch has no plain tensors of this dtype")
    return name


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype's name among torch's own."""
    return str(dtype).removeprefix("torch.")


Dtype = Annotated[str, StringConstraints(max_length=30), AfterValidator(_known_dtype)]


class Record(BaseModel):
    """A JSON object: no field of another type, none that is not known."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def check_layout(shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
    """Raise ValueError for strides of another length than the shape, or too much memory."""
    if len(shape) != len(stride):
        raise ValueError(f"{len(shape)} dimensions but {len(stride)} strides")
    if reach(shape, stride) > MOST_ELEMENTS:
        raise ValueError(f"more than {MOST_ELEMENTS} elements")


def reach(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Elements of memory from a tensor's first to its last."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))


def _sound(tensor: Any) -> Any:
    check_layout(*tensor[:2])
    return tensor


class Tensor(Record):
    """A tensor's shape, strides and dtype."""

    tensor: Annotated[tuple[Shape, Stride, Dtype], AfterValidator(_sound)]

    def empty(self) -> torch.Tensor:
        """A tensor of that shape on the meta device: it takes no memory."""
        shape, stride, dtype = self.tensor
        return torch.empty_strided(shape, stride, dtype=getattr(torch, dtype), device="meta")


def read(file: Path, kind: TypeAdapter[T], fix: str) -> T:
    """Read a JSON file as a record.

    Args:
        file: to read.
        kind: what it must hold.
        fix: what to do if it does not.

    Raises:
        PackageError: it cannot be read, is too large, or is something else. The message names the
            file, the field, the reason and the fix.
    """
    try:
        size = file.stat().st_size
        if size > MOST_BYTES:
            raise PackageError(f"{file}: it has {size} bytes, at most {MOST_BYTES} are read; {fix}")
        text = file.read_bytes()
    except OSError as e:
        raise PackageError(f"{file}: it cannot be read ({e.strerror}); {fix}") from e
    try:
        return kind.validate_json(text, strict=True)
    except ValidationError as e:
        first = e.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:200] or "text"
        raise PackageError(
            f"{file}: {where} {shown(first['input'])}: {first['msg']}; {fix}"
        ) from None


def shown(value: Any) -> str:
    """A short text for a value that may be of any size."""
    try:
        return reprlib.repr(value)[:80]
    except ValueError:  # a whole number of more digits than Python prints
        return "<a huge number>"
