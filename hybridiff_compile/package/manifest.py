"""What a package says about itself, and the checks that come before anything in it is used."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from hybridiff_compile.errors import PackageError

#: Of the manifest and the files it describes; a reader refuses any other.
VERSION = 2
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
RANKS = 2


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Leaf(_Record):
    """One argument of a call: a tensor's shape, strides, dtype and device, or a constant's repr."""

    shape: tuple[int, ...] | None = None
    stride: tuple[int, ...] | None = None
    dtype: str | None = None
    device: str | None = None
    constant: str | None = None


class Call(_Record):
    """A call signature: names and leaves of the arguments, and the trees around them.

    Attributes:
        names, leaves: of the arguments.
        arguments, answer: the trees around them, and around what the denoiser returns.
        answer_leaves: as in `capture.prediction.Form`.
        rows: dimension of the rows of each argument, by name.
    """

    names: tuple[str, ...]
    leaves: tuple[Leaf, ...]
    arguments: str
    answer: str
    answer_leaves: tuple[tuple[int, ...] | None, ...]
    rows: dict[str, int]


class Manifest(_Record):
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
        files: sha256 by name of every other file.
    """

    version: Literal[2] = VERSION
    format: Literal["aot", "onnx"]
    torch: str
    device: str
    denoiser: str
    mode: str
    switching: dict[str, Any]
    ranks: int
    calls: tuple[Call, ...]
    files: dict[str, str]


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
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
    except OSError as e:
        raise PackageError(
            f"{folder} is no package: {MANIFEST} cannot be read ({e.strerror}); name a folder that "
            "export() wrote."
        ) from e
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "text"
        raise PackageError(
            f"{folder / MANIFEST}: {where} {str(first['input'])[:60]!r}: {first['msg']} "
            f"(manifests of version {VERSION} are read here); export the package again."
        ) from e


def _broken(folder: Path, what: str) -> PackageError:
    return PackageError(f"{folder}: {what}; copy the package again, or export it again.")


def _files(folder: Path) -> Iterator[str]:
    return (p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


def _sha256(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
