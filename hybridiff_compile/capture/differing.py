"""A call made into another one of the same signature, to see what equal values would hide."""

from __future__ import annotations

from dataclasses import replace

import torch

from hybridiff_compile.capture.call import DenoiserCall, Rows, parts_in


def of_another_picture(call: DenoiserCall) -> DenoiserCall:
    """The call with another noisy picture, of tensors of its own: the denoiser may write them."""
    own = {name: tensor.detach().clone() for name, tensor in call.tensors().items()}
    noisy = next(iter(own))
    return _with(call, own | {noisy: _others(own[noisy])})


def with_other_half(call: DenoiserCall, rows: Rows) -> DenoiserCall | None:
    """The call with other second halves, of what has equal ones; None if nothing has.

    The picture has, where it is guided; the rest too, where the prompt is the negative one. Rows
    that depend on each other give, of equal halves, what rows of their own give. One number a row
    (a time) stays, and so do whole numbers but the picture's: they may be looked up in a table.
    Waits for the device.

    Args:
        call: of a batch that can be halved.
        rows: where the rows of each argument are.
    """
    tensors, made = call.tensors(), {}
    noisy, parts = next(iter(rows)), parts_in(call, rows)
    for name, dim in rows.items():
        tensor = tensors[name]
        is_free = tensor.is_floating_point() and tensor.numel() > tensor.shape[dim]
        first, *others = tensor.chunk(parts, dim)
        equal = [i for i, other in enumerate(others, 1) if same(first, other).all()]
        if (name == noisy or is_free) and equal:
            made[name] = tensor.detach().clone()
            for i in equal:
                other = made[name].chunk(parts, dim)[i]
                other.copy_(_others(other) * i if other.is_floating_point() else _others(other))
    return _with(call, made) if made else None


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
