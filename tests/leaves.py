"""Denoisers that torch.export cannot follow, and a pipeline of them."""

from __future__ import annotations

import os
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import nn

from tests import toy
from tests.reference import one_thread

STEPS = 4

Answer = tuple[torch.Tensor, ...]


class ByMask(nn.Module):
    """Reads as many words as its mask says, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = toy.seeded(toy.Toy)

    def forward(self, x: torch.Tensor, timestep: Any, text: torch.Tensor, mask: Any) -> Answer:
        rows = []
        for i, count in enumerate(mask.sum(1).tolist()):
            words = text[i : i + 1, :count] if count > 1 else -text[i : i + 1]
            rows += self.unet(x[i : i + 1], timestep, words, return_dict=False)
        return (torch.cat(rows),)


class ByPicture(ByMask):
    """Decides by what it sees."""

    def forward(self, x: torch.Tensor, timestep: Any, text: torch.Tensor, mask: Any) -> Answer:
        return super().forward(x, timestep, -text if x.mean() > 0 else text, mask)


class Tables(ByMask):
    """Makes a table for each number of words, when it first meets it."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[int, torch.Tensor] = {}

    def forward(self, x: torch.Tensor, timestep: Any, text: torch.Tensor, mask: Any) -> Answer:
        (count,) = {int(row.sum()) for row in mask}
        if count not in self.tables:
            self.tables[count] = torch.full((6,), 0.1 * count)
        return super().forward(x, timestep, text + self.tables[count], mask)


class Renews(ByMask):
    """Has its table made again at each call, as some rotary embeddings have."""

    table: torch.Tensor

    def forward(self, x: torch.Tensor, timestep: Any, text: torch.Tensor, mask: Any) -> Answer:
        self.register_buffer("table", torch.full((6,), 0.1), persistent=False)
        return super().forward(x, timestep, text + self.table, mask)


class Draws(ByMask):
    """Draws a random number."""

    def forward(self, x: torch.Tensor, timestep: Any, text: torch.Tensor, mask: Any) -> Answer:
        return super().forward(x, timestep, text + torch.rand(()), mask)


class Local(ByMask):
    """Has a function that is nowhere to be imported from."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = lambda text: 2 * text

    def forward(self, x: torch.Tensor, timestep: Any, text: torch.Tensor, mask: Any) -> Answer:
        return super().forward(x, timestep, self.scale(text), mask)


class OfScript(ByMask):
    """Is defined in the script that was started."""


OfScript.__module__ = "__main__"


#: Read by `Flagged`; another process has it as it is written here.
FLAG = 1.0


class Flagged(ByMask):
    """Reads a setting of its module, and one of its class, late in a run."""

    factor = 1.0

    def forward(self, x: torch.Tensor, timestep: Any, text: torch.Tensor, mask: Any) -> Answer:
        scale = FLAG * self.factor if timestep < 1.0 else 1.0
        return super().forward(x, timestep, text * scale, mask)


class Late(ByMask):
    """Does at the end of a run what it did not do before; of one prompt only, if one is marked."""

    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor, timestep: Any, text: torch.Tensor, mask: Any) -> Answer:
        if timestep < 1.0 and self.is_meant(mask):
            text = self.late(text)
        return super().forward(x, timestep, text, mask)

    def is_meant(self, mask: torch.Tensor) -> bool:
        return True

    def late(self, text: torch.Tensor) -> torch.Tensor:
        return text


class Counts(Late):
    """It counts."""

    def late(self, text: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return text * self.count


class CountsInBuffer(Late):
    """It counts, in a tensor."""

    def late(self, text: torch.Tensor) -> torch.Tensor:
        return text * self.seen.add_(1)


class CountsElsewhere(Counts):
    """It counts calls of the other branch."""

    def is_meant(self, mask: torch.Tensor) -> bool:
        return int(mask.sum()) == 1


class DrawsLate(Late):
    """It draws."""

    def late(self, text: torch.Tensor) -> torch.Tensor:
        return text + torch.rand(())


class Fails(Late):
    """It fails, in the branch of the other rank."""

    def late(self, text: torch.Tensor) -> torch.Tensor:
        raise ValueError("no such mask")

    def is_meant(self, mask: torch.Tensor) -> bool:
        return int(mask.sum()) == 1


class Grows(Late):
    """Its answer grows."""

    def forward(self, x: torch.Tensor, timestep: Any, text: torch.Tensor, mask: Any) -> Answer:
        (eps,) = super().forward(x, timestep, text, mask)
        return eps, eps.new_zeros(len(eps), 3 if timestep < 1.0 else 2)


class Elsewhere(ByMask):
    """Does something else in another process."""

    def __init__(self) -> None:
        super().__init__()
        self.home = os.getpid()

    @property
    def is_home(self) -> bool:
        return self.home == os.getpid()


class Breaks(Elsewhere):
    """It breaks there."""

    def forward(self, x: torch.Tensor, timestep: Any, text: torch.Tensor, mask: Any) -> Answer:
        if not self.is_home:
            raise LookupError("this is another process")
        return super().forward(x, timestep, text, mask)


class Strays(Elsewhere):
    """It computes another thing there."""

    def forward(self, x: torch.Tensor, timestep: Any, text: torch.Tensor, mask: Any) -> Answer:
        return super().forward(x, timestep, text if self.is_home else 2 * text, mask)


class Guides:
    """By one batch, or by a call a branch: a prompt of several words, and others of fewer."""

    def __init__(self, kind: type[nn.Module], branches: int = 2) -> None:
        self.transformer: Any = kind()
        self.scheduler: Any = DDIMScheduler(beta_schedule="scaled_linear")
        self.branches = branches

    @torch.no_grad()
    def __call__(self, words: int = 3, *, together: bool = False, steps: int = STEPS) -> Any:
        g = torch.Generator().manual_seed(0)
        x, n = torch.randn(1, 4, 8, 8, generator=g), self.branches
        texts = torch.randn(n, 3, 6, generator=g)
        mask = (torch.arange(3) < torch.tensor([[words], *[[1]] * (n - 1)])).long()
        self.scheduler.set_timesteps(steps)
        for t in self.scheduler.timesteps:
            rows = [torch.cat([x] * n)] if together else [x] * n
            size = n if together else 1
            pairs = zip(rows, texts.split(size), mask.split(size), strict=True)
            made = [self.transformer(x, t / 500.0, text, m)[0] for x, text, m in pairs]
            c, *others = torch.cat(made).chunk(n)
            guided = c + sum(3.0 * (c - u) for u in others)
            x = self.scheduler.step(guided, t, x).prev_sample
        return x


def plain(*how: Any, **call: Any) -> torch.Tensor:
    """What the pipeline itself makes, on one thread."""
    with one_thread():
        return Guides(*how)(**call)
