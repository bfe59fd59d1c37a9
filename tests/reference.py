"""Plain single-process re-computations that the runtime is compared with, sharing no code with it.

They split the pipeline's own batched calls with their own few lines, and know the algorithm only
from the paper. Of the library they take one fact: where it has cut the denoiser.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree


def half(value: Any, index: int, doubled: int, parts: int = 2) -> Any:
    """The u (0) or c (1) half of every tensor of a doubled batch, through any containers."""

    def cut(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and len(leaf) == doubled:
            return leaf.chunk(parts)[index]
        return leaf

    return pytree.tree_map(cut, value)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within this, torch has one thread, as a rank has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def branches_apart(denoiser: Any) -> Iterator[None]:
    """One device that runs the halves of each batch one after the other, on one thread.

    A batch that has no two equal halves is run in as few equal parts as there are.
    """
    own = denoiser.forward

    def forward(sample: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        if sample is None:
            sample = kwargs.pop("hidden_states")
        assert sample is not None
        n = len(sample)
        parts = next((p for p in range(2, n + 1) if n % p == 0), 1)
        halves = [half((sample, args, kwargs), i, n, parts) for i in range(parts)]
        eps = [own(x, *a, **k)[0] for x, a, k in halves]
        return (torch.cat(eps),)

    denoiser.forward = forward
    try:
        with one_thread():
            yield
    finally:
        del denoiser.forward


class _FromFeatures(fx.Interpreter):
    """Runs a graph; can note some nodes' values, or take them from elsewhere."""

    noted: dict[str, torch.Tensor]
    given: dict[str, torch.Tensor]
    names: frozenset[str]

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)  # a placeholder has to take its argument in any case
        if n.name in self.given:
            return self.given[n.name]
        if n.name in self.names:
            self.noted[n.name] = value
        return value


class PaperReference:
    """The paper's three stages on one device, for one call of a pipeline.

    Args:
        denoiser: of the pipeline.
        crossing: names of the exported graph's nodes whose values cross the cut.
        L, g, k, cap: the paper's constants, for this run's number of steps.
    """

    def __init__(
        self, denoiser: Any, crossing: frozenset[str], L: int, g: float, k: int, cap: int
    ) -> None:
        self.denoiser, self.crossing = denoiser, crossing
        self.L, self.g, self.k, self.cap = L, g, k, cap
        self.M: list[float] = []
        self.tau1: int | None = None
        self.step = 0
        self.features: dict[str, torch.Tensor] = {}
        self.graph: fx.GraphModule | None = None

    def tau1_by_hand(self) -> int | None:
        for i in range(self.L, len(self.M)):
            gradient = (self.M[i - self.L] - self.M[i]) / self.L
            if gradient >= 0 and gradient < self.g:
                return min(i + 1, self.cap)
        return self.cap if self.step >= self.cap else None

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        own = self.denoiser.forward
        self.denoiser.forward = self.forward
        try:
            with one_thread():
                yield
        finally:
            del self.denoiser.forward
        assert self.denoiser.forward == own

    def run(self, args: Any, kwargs: Any, given: dict[str, torch.Tensor]) -> Any:
        if self.graph is None:
            ours = self.denoiser.__dict__.pop("forward")
            exported = torch.export.export(self.denoiser, args, kwargs, strict=False)
            self.denoiser.forward = ours
            self.graph = exported.module(check_guards=False)  # pyright: ignore
        assert self.graph is not None
        interpreter = _FromFeatures(self.graph)
        interpreter.noted, interpreter.given, interpreter.names = {}, given, self.crossing
        eps = interpreter.run(*args, *pytree.tree_leaves(kwargs, is_leaf=lambda x: x is None))
        return pytree.tree_leaves(eps)[0], interpreter.noted

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        doubled = len(args[0]) if args else len(kwargs["hidden_states"])
        (args_u, kwargs_u), (args_c, kwargs_c) = (half((args, kwargs), i, doubled) for i in (0, 1))
        if self.tau1 is None:
            self.tau1 = self.tau1_by_hand()
        if self.tau1 is not None and self.tau1 <= self.step < self.tau1 + self.k:
            _, features = self.run(args_u, kwargs_u, {})
            # The second half never sees the picture: with NaN for it, a leak would show.
            args_c, kwargs_c = self.without_picture(args_c, kwargs_c)
            eps, _ = self.run(args_c, kwargs_c, self.features)
            eps_u = eps_c = eps
        else:
            eps_u, features = self.run(args_u, kwargs_u, {})
            eps_c, _ = self.run(args_c, kwargs_c, {})
            self.M.append(((eps_c - eps_u).abs().mean() / eps_u.abs().mean()).item())
        self.features, self.step = features, self.step + 1
        return (torch.cat([eps_u, eps_c]),)

    def without_picture(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if args:
            return (torch.full_like(args[0], torch.nan), *args[1:]), kwargs
        return args, {
            **kwargs,
            "hidden_states": torch.full_like(kwargs["hidden_states"], torch.nan),
        }
