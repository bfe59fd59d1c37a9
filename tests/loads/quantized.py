"""Weights of 8 bits as a quantisation library has them: a tensor subclass of two tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

aten = torch.ops.aten
_KEPT = (aten.detach.default, aten.alias.default, aten.clone.default, aten._to_copy.default)


class Int8(torch.Tensor):
    """A matrix as whole numbers, and one scale a row."""

    numbers: torch.Tensor
    scale: torch.Tensor

    @staticmethod
    def __new__(cls, numbers: torch.Tensor, scale: torch.Tensor) -> Any:
        like: Any = {"dtype": scale.dtype, "device": numbers.device}
        return torch.Tensor._make_wrapper_subclass(cls, numbers.shape, **like)

    def __init__(self, numbers: torch.Tensor, scale: torch.Tensor) -> None:
        self.numbers, self.scale = numbers, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["numbers", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inside: Any, context: None, size: Any, stride: Any) -> Int8:
        return Int8(inside["numbers"], inside["scale"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _KEPT and not kwargs:
            return cls(func(args[0].numbers), func(args[0].scale))
        args, kwargs = pytree.tree_map_only(cls, cls.opened, (args, kwargs or {}))
        return func(*args, **kwargs)

    def opened(self) -> torch.Tensor:
        return self.numbers.to(self.scale.dtype) * self.scale

    @classmethod
    def of(cls, weight: torch.Tensor) -> Int8:
        scale = weight.detach().abs().amax(1, keepdim=True) / 127
        return cls((weight.detach() / scale).round().to(torch.int8), scale)


def quantize(module: nn.Module) -> None:
    """Let every linear layer of a module have 8-bit weights."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.weight = nn.Parameter(Int8.of(layer.weight), requires_grad=False)
