"""One host copy of the weights for all ranks: a file that every process maps."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

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

    def view(self, storage: Any) -> torch.Tensor:
        """Return the weight as a tensor over the mapping."""
        flat = torch.empty(0, dtype=self.dtype)
        return flat.set_(storage, self.offset // self.dtype.itemsize, self.shape, self.stride)


#: Weights by name.
Manifest = dict[str, Weight]


class Published:
    """A module's weights in a file that workers map; see `publish`.

    Attributes:
        path: of the file; None once it is closed.
        manifest: where in the file each weight lies.
        names: of the weights, by the `id` of their tensor objects.
    """

    def __init__(self, module: nn.Module) -> None:
        """Publish them.

        Raises:
            SpaceError: the file's folder has no room for them.
        """
        with ExitStack() as files:
            self.path: Path | None = files.enter_context(weights_file())
            self.manifest, self.names = publish(module, self.path)
            self._files = files.pop_all()

    def close(self) -> None:
        """After all workers have mapped it: the file is gone, the mappings stay."""
        self.path = None
        self._files.close()


def publish(module: nn.Module, path: Path) -> tuple[Manifest, dict[int, str]]:
    """Write a module's weights to a file that other processes map.

    On the CPU the module's own weights are re-pointed into the mapping, so that there is one copy;
    on another device they stay where they are.

    Returns:
        The manifest, and the name of each weight by the `id` of its tensor object.

    Raises:
        SpaceError: the file's folder has no room for them.
    """
    tensors = dict((*module.named_parameters(), *module.named_buffers()))
    manifest, end = {}, 0
    for name, tensor in tensors.items():
        dense = torch.empty_like(tensor, device="meta")  # keeps strides, drops gaps
        address = tensor.data_ptr() if tensor.device.type == "cpu" else 0
        offset = end + (address - end) % _ALIGNMENT
        manifest[name] = Weight(offset, tuple(dense.shape), dense.stride(), dense.dtype)
        end = offset + dense.numel() * dense.element_size()
    _reserve(path, max(end, 1))
    with path.open("r+b", buffering=0) as file:  # to write through a mapping takes ten times longer
        for name, tensor in tensors.items():
            os.pwrite(file.fileno(), _memory(tensor.detach()), manifest[name].offset)
    storage = torch.UntypedStorage.from_file(str(path), shared=True, nbytes=max(end, 1))
    for name, tensor in tensors.items():
        if tensor.device.type == "cpu":
            with torch.inference_mode(tensor.is_inference()):  # it still says that it is one
                tensor.data = manifest[name].view(storage)
    return manifest, {id(tensor): name for name, tensor in tensors.items()}


def _memory(tensor: torch.Tensor) -> Any:
    """A tensor's bytes as they lie in memory, without gaps; its own where it has none."""
    dense = torch.empty_like(tensor, device="cpu") if tensor.numel() else tensor
    if tensor.device.type != "cpu" or dense.stride() != tensor.stride():
        tensor = dense.copy_(tensor)
    start = tensor.storage_offset() * tensor.element_size()
    flat = torch.empty(0, dtype=torch.uint8)
    return flat.set_(tensor.untyped_storage(), start, (tensor.nbytes,), (1,)).numpy()


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
    views = {name: weight.view(storage) for name, weight in manifest.items()}
    return {name: view.to(device) for name, view in views.items()}


@contextmanager
def weights_file() -> Iterator[Path]:
    """A file for weights to be mapped from; it is gone at the end, the mappings stay.

    On Linux it never has a name that could outlive a driver that is killed meanwhile: a worker
    finds it among the driver's open files.
    """
    handle, name = tempfile.mkstemp(prefix="hybridiff-weights-")
    nameless = Path(f"/proc/{os.getpid()}/fd/{handle}")
    try:
        if nameless.exists():
            Path(name).unlink()
            yield nameless
        else:
            yield Path(name)
    finally:
        os.close(handle)
        Path(name).unlink(missing_ok=True)
