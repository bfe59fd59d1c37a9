"""What a package says about itself, and the checks that come before anything in it is used."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, StringConstraints, TypeAdapter, model_validator
from torch.utils import _pytree as pytree

from hybridiff_compile.capture.call import DenoiserCall, parts_of
from hybridiff_compile.errors import PackageError
from hybridiff_compile.package.schema import (
    Device,
    Dtype,
    Label,
    Record,
    Shape,
    Stride,
    Text,
    check_layout,
    read,
)

#: Of the manifest and the files it describes; a reader refuses any other.
VERSION = 2
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
RANKS = 2


class TensorLeaf(Record):
    """A tensor among the arguments of a call."""

    shape: Shape
    stride: Stride
    dtype: Dtype
    device: Device

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_layout(self.shape, self.stride)
        return self

    def empty(self, device: str = "meta") -> torch.Tensor:
        """A tensor of that shape; on the meta device it takes no memory."""
        dtype = getattr(torch, self.dtype)
        return torch.empty_strided(self.shape, self.stride, dtype=dtype, device=device)


class ConstantLeaf(Record):
    """Another argument of a call, by its repr."""

    constant: Text


class Call(Record):
    """A call signature: names and leaves of the arguments, and the trees around them.

    Attributes:
        names, leaves: of the arguments.
        arguments, answer: the trees around them, and around what the denoiser returns.
        answer_leaves: as in `capture.prediction.Form`.
        rows: dimension of the rows of each argument, by name.
    """

    names: Annotated[tuple[Label, ...], Field(min_length=1, max_length=1000)]
    leaves: Annotated[tuple[TensorLeaf | ConstantLeaf, ...], Field(max_length=1000)]
    arguments: Text
    answer: Text
    answer_leaves: Annotated[tuple[Shape | None, ...], Field(min_length=1, max_length=1000)]
    rows: Annotated[
        dict[Label, Annotated[int, Field(ge=0, le=15)]], Field(min_length=1, max_length=1000)
    ]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.names) != len(self.leaves) or len(set(self.names)) != len(self.names):
            raise ValueError("the names of its arguments are not one each")
        tensors, parts = self.made().tensors(), 0
        for name, dim in self.rows.items():
            shape = tensors[name].shape if name in tensors else ()
            parts = parts or (parts_of(shape[dim]) if dim < len(shape) else 0)
            if dim >= len(shape) or parts < RANKS or not shape[dim] or shape[dim] % parts:
                raise ValueError(f"rows.{name}: it has no dimension {dim} that can be halved")
        if not any(leaf is not None for leaf in self.answer_leaves):
            raise ValueError("answer_leaves: the denoiser returns no tensor")
        return self

    def made(self) -> DenoiserCall:
        """The call, with tensors on the meta device in place of its own."""
        leaves = tuple(
            leaf.empty() if isinstance(leaf, TensorLeaf) else leaf.constant for leaf in self.leaves
        )
        return DenoiserCall(self.names, leaves, pytree.treespec_leaf())


_Steps = Annotated[int, Field(ge=1, lt=2**31)] | None


class Switching(Record):
    """The switching settings of `optimize`, None if not given; `Config` checks their values."""

    L_slope: _Steps
    eps_slope: float | None
    k: _Steps
    tau_cap: _Steps
    tau1: _Steps
    m: _Steps
    tolerance: float | Label | None
    estimator: Label | None


class Manifest(Record):
    """What a package holds and what it was made with.

    Attributes:
        version: of this record.
        format: "aot": the stages are AOTInductor packages, which `load` runs. "onnx": they are ONNX
            models, for other runtimes.
        torch, device: what loads it must have the same; `device` names the kind and, on a CPU, the
            instruction set.
        denoiser: class name of the module that the stages were made from.
        mode, switching: of the run, as given to `optimize`.
        ranks: number of ranks; rank r's programs are in `rank<r>.json`.
        calls: the signatures that it serves.
        strides: of every weight, by name, as the stages read it; the file has them contiguous.
        constants: names of the weights that are the graphs' own, not the denoiser's.
        files: sha256 by name of every other file.
    """

    version: Literal[2]
    format: Literal["aot", "onnx"]
    torch: Label
    device: Label
    denoiser: Label
    mode: Label
    switching: Switching
    ranks: Literal[2]
    calls: Annotated[tuple[Call, ...], Field(min_length=1, max_length=1000)]
    strides: Annotated[dict[Label, Stride], Field(max_length=1_000_000)]
    constants: Annotated[tuple[Label, ...], Field(max_length=1_000_000)]
    files: Annotated[
        dict[
            Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")],
            Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")],
        ],
        Field(max_length=10_000),
    ]


_MANIFEST: TypeAdapter[Manifest] = TypeAdapter(Manifest)


def device_kind(device: torch.device) -> str:
    """What compiled code depends on: the kind of device and its instruction set."""
    if device.type == "cpu":
        return f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    major, minor = torch.cuda.get_device_capability(device)
    return f"{device.type} sm_{major}{minor}"


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a package but its manifest, by relative name."""
    return {name: _sha256(folder / name) for name in sorted(_files(folder)) if name != MANIFEST}


def check(folder: Path | str) -> Manifest:
    """Read a package's manifest and check every file against it.

    Raises:
        PackageError: there is no whole package of a known version, or a file is missing, extra or
            changed. The message names it.
    """
    folder = Path(folder)
    manifest = _read(folder)
    found = set(_files(folder)) - {MANIFEST}
    for rank in range(manifest.ranks):
        if f"rank{rank}.json" not in found & manifest.files.keys():
            raise _broken(folder, f"rank {rank} of {manifest.ranks} is missing (rank{rank}.json)")
    for name in sorted(found ^ manifest.files.keys()):
        lack = "missing" if name in manifest.files else "not in the manifest"
        raise _broken(folder, f"{name} is {lack}")
    for name, digest in manifest.files.items():
        if not (folder / name).is_file():
            raise _broken(folder, f"{name} is no regular file")
        if _sha256(folder / name) != digest:
            raise _broken(folder, f"{name} is not as it was exported (sha256 differs)")
    return manifest


def check_machine(folder: Path, manifest: Manifest, device: torch.device) -> None:
    """Refuse a package of another torch or another kind of device.

    Raises:
        PackageError: it names both.
    """
    for what, made, here in (
        ("torch", manifest.torch, torch.__version__),
        ("device", manifest.device, device_kind(device)),
    ):
        if made != here:
            raise PackageError(
                f"{folder} was exported for {what} {made}, this is {here}; export it again here."
            )


def _read(folder: Path) -> Manifest:
    if not (folder / MANIFEST).is_file():
        raise PackageError(
            f"{folder} is no package: it has no {MANIFEST}; name a folder that export() wrote."
        )
    fix = f"manifests of version {VERSION} are read here, export the package again."
    return read(folder / MANIFEST, _MANIFEST, fix)


def _broken(folder: Path, what: str) -> PackageError:
    return PackageError(f"{folder}: {what}; copy the package again, or export it again.")


def _files(folder: Path) -> Iterator[str]:
    return (p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


def _sha256(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
