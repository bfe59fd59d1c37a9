"""A module with weights of every kind."""

from __future__ import annotations

import torch
from torch import nn

CPU = torch.device("cpu")


class Odd(nn.Module):
    """Weights of every kind: channels_last, transposed, tied, half precision, buffers, frozen."""

    steps: torch.Tensor
    table: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)  # pyright: ignore
        self.token = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.token.weight
        self.narrow = nn.Linear(3, 3).half()
        self.flipped = nn.Parameter(torch.randn(4, 6).t(), requires_grad=False)
        self.register_buffer("steps", torch.tensor(12))
        self.register_buffer("table", torch.arange(8).expand(3, 8), persistent=False)


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict((*module.named_parameters(), *module.named_buffers()))
