"""A call made into another one of the same signature, to see what equal values would hide."""

from __future__ import annotations

from dataclasses import replace

import torch

from hybridiff_compile.capture.call import DenoiserCall, Rows
from hybridiff_compile.ir import BRANCHES


def of_another_picture(call: DenoiserCall) -> DenoiserCall:
    """The call with another noisy picture."""
    noisy = next(iter(call.tensors()))
    return _with(call, {noisy: _others(call.tensors()[noisy])})


def has_equal_halves(call: DenoiserCall, rows: Rows) -> bool:
    """Whether both halves of a batch are one, as where the prompt and the negative one are.

    Then rows that depend on each other give what rows of their own give. Waits for the device.

    Args:
        call: of a batch that can be halved.
        rows: where the rows of each argument are.
    """
    tensors = call.tensors()
    halves = (tensors[name].chunk(len(BRANCHES), dim) for name, dim in rows.items())
    return all(bool(same(*pair).all()) for pair in halves)


def with_other_half(call: DenoiserCall, rows: Rows) -> DenoiserCall:
    """The call with other rows in its second half: of the picture, and of what it is made by.

    One number a row (a time) stays, and so do whole numbers but the picture's: they may be looked
    up in a table.
    """
    tensors, made = call.tensors(), {}
    noisy = next(iter(rows))
    for name, dim in rows.items():
        tensor = tensors[name]
        if name == noisy or (tensor.is_floating_point() and tensor.numel() > tensor.shape[dim]):
            made[name] = tensor.detach().clone()
            second = made[name].chunk(len(BRANCHES), dim)[1]
            second.copy_(_others(second))
    return _with(call, made)


def same(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Where two tensors are the same; what is no number in both is."""
    return (one == other) | (one.isnan() & other.isnan())


def _others(values: torch.Tensor) -> torch.Tensor:
    """Other values of the same kind; whole numbers (tokens) change places."""
    if not values.is_floating_point():
        return values.flip(-1)
    return torch.where(values.isfinite(), 0.5 - values, values)  # a mask may be infinite


def _with(call: DenoiserCall, made: dict[str, torch.Tensor]) -> DenoiserCall:
    pairs = zip(call.names, call.leaves, strict=True)
    return replace(call, leaves=tuple(made.get(name, leaf) for name, leaf in pairs))
