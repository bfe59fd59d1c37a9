"""How the tensors of a cut lie in the one buffer that crosses between two stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

# Every tensor starts at a multiple of this, so that a view of any dtype is aligned.
_ALIGNMENT = 16


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor of a cut: its strides are kept, so that the kernels that read it stay the same."""

    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def view(self, buffer: torch.Tensor) -> torch.Tensor:
        """Return this tensor as a view of `buffer`, uint8[nbytes]."""
        count = math.prod(self.shape) * self.dtype.itemsize
        flat = buffer[self.offset : self.offset + count].view(self.dtype)
        return flat.as_strided(self.shape, self.stride)


@dataclass(frozen=True, slots=True)
class Layout:
    """The slots of a cut in one uint8 buffer of `nbytes` bytes."""

    slots: tuple[Slot, ...]
    nbytes: int

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor]) -> Layout:
        """Lay out tensors (fake or real) one after the other."""
        slots, offset = [], 0
        for t in tensors:
            slots.append(Slot(offset, tuple(t.shape), _dense_stride(t), t.dtype))
            offset += -(-t.numel() * t.element_size() // _ALIGNMENT) * _ALIGNMENT
        return cls(tuple(slots), offset)


def _dense_stride(t: torch.Tensor) -> tuple[int, ...]:
    """The tensor's strides if it fills its memory without gaps or overlap, else contiguous ones."""
    dims = sorted((s, n) for s, n in zip(t.stride(), t.shape, strict=True) if n != 1)
    expected = 1
    for stride, count in dims:
        if stride != expected:
            return torch.empty(t.shape, device="meta").stride()
        expected *= count
    return tuple(t.stride())


class PackCut(nn.Module):
    """Copy the tensors of a cut into one new buffer: `(t0, t1, ...) -> uint8[nbytes]`."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the buffer."""
        buffer = torch.empty(self.layout.nbytes, dtype=torch.uint8, device=tensors[0].device)
        for slot, tensor in zip(self.layout.slots, tensors, strict=True):
            slot.view(buffer).copy_(tensor)
        return buffer


class UnpackCut(nn.Module):
    """View a buffer as the tensors of a cut: `uint8[nbytes] -> (t0, t1, ...)`, no copy."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, buffer: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the views."""
        return tuple(slot.view(buffer) for slot in self.layout.slots)
