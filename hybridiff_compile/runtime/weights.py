"""One host copy of the weights for all ranks: a file that every process maps."""

from __future__ import annotations

import errno
import math
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hybridiff_compile import adapters
from hybridiff_compile.errors import SpaceError

# A weight keeps its address modulo this: CPU kernels choose their path, and so their last bits, by
# the alignment of what they read (weights mapped from a safetensors file often start at 8 mod 64).
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Weight:
    """Where one parameter or buffer lies in the mapping."""

    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    #: torch multiplies by another kernel, of other last bits, where a weight takes a gradient.
    requires_grad: bool = False
    #: It stays on the CPU, whatever device the others are on.
    is_on_cpu: bool = False

    @property
    def nbytes(self) -> int:
        """From its first value to its last one."""
        return _span(self)

    def view(self, storage: Any) -> torch.Tensor:
        """Return the weight as a tensor over the mapping."""
        flat = torch.empty(0, dtype=self.dtype)
        return flat.set_(storage, self.offset // self.dtype.itemsize, self.shape, self.stride)


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A weight of a tensor subclass, a quantised one say, whose parts lie in the mapping."""

    kind: type
    parts: tuple[str, ...]
    context: Any
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def rebuild(self, name: str, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the weight of a name, of its parts, which are `<name>.<part>`."""
        inside = {part: weights[f"{name}.{part}"] for part in self.parts}
        unflatten: Any = self.kind
        return unflatten.__tensor_unflatten__(inside, self.context, self.shape, self.stride)


#: Weights by name; the parts of a wrapped one come before it.
Manifest = dict[str, Weight | Wrapped]


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, buffers, what modules have as plain attributes (tables), scales of adapters."""
    plain = {
        f"{path}.{name}".lstrip("."): value
        for path, inner in module.named_modules()
        for name, value in vars(inner).items()
        if type(value) is torch.Tensor and value.layout is torch.strided
    }
    own = dict((*module.named_parameters(), *module.named_buffers()))
    return {**plain, **own, **adapters.tensors(module)}


def publish(
    weights: Mapping[str, torch.Tensor], path: Path
) -> tuple[Manifest, torch.UntypedStorage]:
    """Write weights to a file that other processes map.

    On the CPU the weights themselves are re-pointed into the mapping, so that there is one copy; on
    another device they stay where they are.

    Returns:
        The manifest, and the mapping.

    Raises:
        SpaceError: the file's folder has no room for them.
    """
    tensors, manifest, end = {}, {}, 0
    wrapped: Manifest = {}
    for name, tensor in weights.items():
        tensors.update(_opened(name, tensor, wrapped))
    for group in overlapping(tensors):
        alone = len(group) == 1
        start = min(_address(tensors[name]) for name in group)
        offset = end + (start - end) % _ALIGNMENT
        for name in group:
            tensor = tensors[name]
            dense = torch.empty_like(tensor, device="meta")  # keeps strides, drops gaps
            stride = dense.stride() if alone else tensor.stride()
            at = offset if alone else offset + _address(tensor) - start
            shape, kind = tuple(tensor.shape), tensor.dtype
            is_on_cpu = tensor.device.type == "cpu"
            manifest[name] = Weight(at, shape, tuple(stride), kind, tensor.requires_grad, is_on_cpu)
            end = max(end, at + manifest[name].nbytes)
    _reserve(path, max(end, 1))
    with path.open("r+b", buffering=0) as file:  # to write through a mapping takes ten times longer
        for name, tensor in tensors.items():
            weight = manifest[name]
            os.pwrite(file.fileno(), _memory(tensor.detach(), weight), weight.offset)
    storage: Any = torch.UntypedStorage.from_file(str(path), shared=True, nbytes=max(end, 1))
    mapping = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()  # pyright: ignore
    for name, tensor in tensors.items():
        if tensor.device.type == "cpu":
            with torch.inference_mode(tensor.is_inference()):  # it still says that it is one
                tensor.data = _alone(manifest[name], mapping)
    return {**manifest, **wrapped}, storage


def _opened(
    name: str, tensor: torch.Tensor, wrapped: Manifest
) -> Iterator[tuple[str, torch.Tensor]]:
    """The ordinary tensors that a weight is made of; notes in `wrapped` how, inner ones first."""
    if not is_traceable_wrapper_subclass(tensor):
        yield name, tensor
        return
    parts, context = tensor.__tensor_flatten__()
    for part in parts:
        yield from _opened(f"{name}.{part}", getattr(tensor, part), wrapped)
    size, stride = tuple(tensor.shape), tuple(tensor.stride())
    wrapped[name] = Wrapped(type(tensor), tuple(parts), context, size, stride)


def _alone(weight: Weight, mapping: Any) -> torch.Tensor:
    """A weight over the mapping with a storage of its own size: a pickle writes whole storages."""
    part = torch.from_numpy(mapping[weight.offset : weight.offset + weight.nbytes])
    return Weight(0, weight.shape, weight.stride, weight.dtype).view(part.untyped_storage())


def _address(tensor: torch.Tensor) -> int:
    return tensor.data_ptr() if tensor.device.type == "cpu" else 0


def overlapping(tensors: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """Names of those that share memory, whose writes reach each other; each once, in order.

    On another device than the CPU each is written by itself: a worker has a copy of it.
    """
    here = [n for n, t in tensors.items() if t.device.type == "cpu" and t.numel()]
    groups: list[list[str]] = [[n] for n, t in tensors.items() if n not in set(here)]
    reached = -1
    for name in sorted(here, key=lambda n: _address(tensors[n])):
        if _address(tensors[name]) < reached:
            groups[-1].append(name)
        else:
            groups.append([name])
        reached = max(reached, _address(tensors[name]) + _span(tensors[name]))
    position = {name: i for i, name in enumerate(tensors)}
    return sorted(groups, key=lambda names: min(position[n] for n in names))


def _span(tensor: torch.Tensor | Weight) -> int:
    """Bytes from a tensor's first value to its last one."""
    if not math.prod(tensor.shape):
        return 0
    strides = tensor.stride() if isinstance(tensor, torch.Tensor) else tensor.stride
    steps = sum((n - 1) * stride for n, stride in zip(tensor.shape, strides, strict=True))
    return (1 + steps) * tensor.dtype.itemsize


def _memory(tensor: torch.Tensor, weight: Weight) -> Any:
    """A tensor's bytes as they lie in memory, laid out as a weight is."""
    if tensor.device.type != "cpu" or weight.stride != tuple(tensor.stride()):
        dense = torch.empty_strided(weight.shape, weight.stride, dtype=tensor.dtype)
        tensor = dense.copy_(tensor)
    start = tensor.storage_offset() * tensor.element_size()
    flat = torch.empty(0, dtype=torch.uint8)
    return flat.set_(tensor.untyped_storage(), start, (weight.nbytes,), (1,)).numpy()


def _reserve(path: Path, nbytes: int) -> None:
    """Give the file all of its room now: a mapping that finds none later kills the process."""
    folder = tempfile.gettempdir() if path.is_relative_to("/proc") else path.parent
    with path.open("ab") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, nbytes)
        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise SpaceError(
                f"{folder} has no room for the {nbytes} bytes of the shared weights "
                f"({e.strerror}); free some there, or set TMPDIR to a folder that has it."
            ) from e


def attach(path: Path, manifest: Manifest, device: torch.device) -> dict[str, torch.Tensor]:
    """Map published weights; on another device than the CPU, copy them there."""
    storage = torch.UntypedStorage.from_file(str(path), shared=True, nbytes=path.stat().st_size)
    found: dict[str, torch.Tensor] = {}
    for name, weight in manifest.items():
        if isinstance(weight, Weight):
            mapped = weight.view(storage)
            mapped = (
                mapped.clone() if weight.is_on_cpu and device.type != "cpu" else mapped.to(device)
            )
            found[name] = mapped.requires_grad_(weight.requires_grad)
        else:
            found[name] = weight.rebuild(name, found)
    return found


def exchange(
    held: dict[str, torch.Tensor], found: Mapping[str, torch.Tensor], gone: Collection[str]
) -> None:
    """Give the tensors that are held under these names other data; whoever has them has it, too."""
    for name in gone:
        held.pop(name, None)
    for name, tensor in found.items():
        before = held.get(name)
        if before is None or is_traceable_wrapper_subclass(tensor):
            held[name] = tensor
        else:
            with torch.no_grad():
                before.requires_grad_(tensor.requires_grad)
                before.data = tensor.data


@contextmanager
def weights_file() -> Iterator[tuple[int, Path]]:
    """A file for weights to be mapped from; it is gone at the end, the mappings stay.

    On Linux it never has a name that could outlive a driver that is killed meanwhile: a worker
    finds it among the driver's open files.

    Returns:
        Its open handle, and the path by which other processes find it.
    """
    handle, name = tempfile.mkstemp(prefix="hybridiff-weights-")
    owner = os.getpid()
    nameless = Path(f"/proc/{owner}/fd/{handle}")
    try:
        if nameless.exists():
            Path(name).unlink()
            yield handle, nameless
        else:
            yield handle, Path(name)
    finally:
        os.close(handle)
        if os.getpid() == owner:  # a forked child lets go of its handle alone
            Path(name).unlink(missing_ok=True)
