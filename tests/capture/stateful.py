"""A denoiser that may keep something from call to call, and the look at it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hybridiff_compile.capture.state import left_behind


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.kept: Any = None
        self.register_buffer("count", torch.zeros(1))
        self.counts: dict[str, Any] = {"calls": [0]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.work(x)
        return self.linear(x)

    def work(self, x: torch.Tensor) -> None:
        pass


def hooked_by(hook: Callable[..., Any]) -> Base:
    denoiser = Base()
    denoiser.linear.register_forward_hook(hook)
    return denoiser


def tried(denoiser: nn.Module) -> tuple[torch.Tensor, list[str]]:
    x = torch.randn(2, 4)
    with torch.no_grad():
        return left_behind(denoiser, lambda: denoiser(x), lambda: denoiser(0.5 - x))
