"""One host copy of the weights for all ranks: a file that every process maps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

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


def publish(module: nn.Module, path: Path) -> tuple[Manifest, dict[int, str]]:
    """Write a module's weights to a file that other processes map.

    On the CPU the module's own weights are re-pointed into the mapping, so that there is one copy;
    on another device they stay where they are.

    Returns:
        The manifest, and the name of each weight by the `id` of its tensor object.
    """
    tensors = dict((*module.named_parameters(), *module.named_buffers()))
    manifest, end = {}, 0
    for name, tensor in tensors.items():
        dense = torch.empty_like(tensor, device="meta")  # keeps strides, drops gaps
        address = tensor.data_ptr() if tensor.device.type == "cpu" else 0
        offset = end + (address - end) % _ALIGNMENT
        manifest[name] = Weight(offset, tuple(dense.shape), dense.stride(), dense.dtype)
        end = offset + dense.numel() * dense.element_size()
    storage = torch.UntypedStorage.from_file(str(path), shared=True, nbytes=max(end, 1))
    for name, tensor in tensors.items():
        mapped = manifest[name].view(storage)
        mapped.copy_(tensor.detach())
        if tensor.device.type == "cpu":
            tensor.data = mapped
    return manifest, {id(tensor): name for name, tensor in tensors.items()}


def attach(path: Path, manifest: Manifest, device: torch.device) -> dict[str, torch.Tensor]:
    """Map published weights; on another device than the CPU, copy them there."""
    storage = torch.UntypedStorage.from_file(str(path), shared=True, nbytes=path.stat().st_size)
    views = {name: weight.view(storage) for name, weight in manifest.items()}
    return {name: view.to(device) for name, view in views.items()}
