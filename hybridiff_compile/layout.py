"""How several tensors lie in the one buffer that crosses between two ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

# Every tensor starts at a multiple of this, as if the CPU allocator had made it: kernels choose
# their path, and so their last bits, by alignment.
_ALIGNMENT = 64

#: A tensor, and how often it had been written; it is kept, so that its memory is not used again.
Kept = tuple[torch.Tensor, int | None]


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor: its strides are kept, so that the kernels that read it stay the same."""

    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def view(self, buffer: torch.Tensor) -> torch.Tensor:
        """Return this tensor as a view of `buffer`, uint8[nbytes]."""
        count = math.prod(self.shape) * self.dtype.itemsize
        flat = buffer[self.offset : self.offset + count].view(self.dtype)
        return flat.as_strided(self.shape, self.stride)

    def bytes(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor of this shape as it lies in a buffer, uint8[n]."""
        order = sorted(range(len(self.shape)), key=lambda i: -self.stride[i])
        flat = tensor.permute(order).contiguous().as_strided((tensor.numel(),), (1,))
        return flat.view(torch.uint8)


@dataclass(frozen=True, slots=True)
class Layout:
    """The slots of some tensors in one uint8 buffer of `nbytes` bytes."""

    slots: tuple[Slot, ...]
    nbytes: int

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor]) -> Layout:
        """Lay out tensors (fake or real) one after the other."""
        slots, offset = [], 0
        for t in tensors:
            slots.append(Slot(offset, tuple(t.shape), dense_stride(t), t.dtype))
            offset += -(-t.numel() * t.element_size() // _ALIGNMENT) * _ALIGNMENT
        return cls(tuple(slots), offset)

    def pack(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Copy the tensors into one new buffer, uint8[nbytes]."""
        pieces = []  # put together by one cat: a compiler cannot follow writes through views
        for slot, tensor in zip(self.slots, tensors, strict=True):
            data = slot.bytes(tensor)
            pieces += [data, data.new_zeros(-len(data) % _ALIGNMENT)]
        return torch.cat(pieces)

    def unpack(self, buffer: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """View a buffer as the tensors; no copy."""
        return tuple(slot.view(buffer) for slot in self.slots)


def dense_stride(t: torch.Tensor) -> tuple[int, ...]:
    """The tensor's strides if it fills its memory without gaps or overlap, else contiguous ones."""
    dims = sorted((s, n) for s, n in zip(t.stride(), t.shape, strict=True) if n != 1)
    expected = 1
    for stride, count in dims:
        if stride != expected:
            return torch.empty(t.shape, device="meta").stride()
        expected *= count
    return tuple(t.stride())


def empty_alike(t: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """An empty tensor of another shape, whose dimensions lie in memory in the same order."""
    order = sorted(range(t.dim()), key=t.stride, reverse=True)
    made = t.new_empty([shape[d] for d in order])
    return made.permute([order.index(d) for d in range(t.dim())])


class PackCut(nn.Module):
    """`Layout.pack` as a node of a step graph: `(t0, t1, ...) -> uint8[nbytes]`."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the buffer."""
        return self.layout.pack(tensors)


class UnpackCut(nn.Module):
    """`Layout.unpack` as a node of a step graph: `uint8[nbytes] -> (t0, t1, ...)`."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, buffer: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the views."""
        return self.layout.unpack(buffer)


def writes(tensor: torch.Tensor) -> int | None:
    """How often torch has seen a tensor's memory written; None where it does not count."""
    return None if tensor.is_inference() else tensor._version


def is_kept(kept: Kept | None, value: torch.Tensor) -> bool:
    """Whether `value` is the tensor that was kept, not written since: a view of it counts."""
    if kept is None or kept[1] is None:
        return False
    before, version = kept
    return (
        before.data_ptr() == value.data_ptr()
        and before.stride() == value.stride()
        and before.shape == value.shape
        and before.dtype == value.dtype
        and version == writes(value)
    )


def is_same(kept: Kept | None, value: torch.Tensor) -> bool | torch.Tensor:
    """Whether a tensor is what one was when it was kept: itself, or another one of its values.

    Returns:
        A 0-dim bool tensor where only its device can tell, so that nothing waits here.
    """
    try:
        if is_kept(kept, value):
            return True
        if kept is None or kept[1] != writes(kept[0]):
            return False  # what it was is gone
        before = kept[0]
        alike = (before.shape, before.dtype, before.device)
        if alike != (value.shape, value.dtype, value.device):
            return False
        return torch.equal(before, value) if _is_here(value) else (before == value).all()
    except RuntimeError:  # its memory was taken back, as CUDA graphs do with what they return
        return False


def _is_here(tensor: torch.Tensor) -> bool:
    """Whether comparing its values waits for no device."""
    return tensor.device.type == "cpu"


def plain_parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The ordinary tensors that one is made of: itself, or those inside a quantised one."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from plain_parts(getattr(tensor, name))
