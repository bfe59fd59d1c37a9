"""How a pipeline calls its denoisers, seen in a run of it: never from names."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from coverage_rows import Pattern
from diffusers import ModelMixin, SchedulerMixin
from diffusers.models.cache_utils import CacheMixin
from torch import nn
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Call:
    """One call of a model of a pipeline.

    Attributes:
        name: of the part of the pipeline.
        picture: its first argument that has rows, [rows, ...]; or a list, a tensor a row.
        context: name of its `cache_context`, or "".
        prediction: the first tensor of its answer, [rows, ...]; None if there is none.
    """

    name: str
    picture: torch.Tensor | list[torch.Tensor]
    context: str
    prediction: torch.Tensor | None

    @property
    def parts(self) -> int:
        """Equal parts of the rows; their first channel is compared, as others may be conditions."""
        rows = [first_channel(row) for row in self.picture]
        for parts in range(len(rows), 1, -1):
            size, rest = divmod(len(rows), parts)
            if not rest and all(same(rows[i], rows[i % size]) for i in range(len(rows))):
                return parts
        return 1


#: The calls of each step; the last one holds what came after the last step.
Steps = list[list[Call]]


def first_channel(row: torch.Tensor) -> torch.Tensor:
    """Of a picture [C, H, W], a clip [F, C, H, W] or [C, F, H, W], or tokens [L, C]."""
    return row[:, :1] if row.ndim == 2 else row[(slice(1),) * max(0, row.ndim - 2)]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are equal."""
    return a.shape == b.shape and torch.equal(a, b)


def models(pipe: Any) -> dict[str, nn.Module]:
    """Models of a pipeline that may be denoisers: diffusers' own that do not decode pictures."""
    parts = vars(pipe).items()
    return {n: p for n, p in parts if isinstance(p, ModelMixin) and not hasattr(p, "decode")}


@contextlib.contextmanager
def watched(pipe: Any) -> Iterator[Steps]:
    """Within this, calls of the pipeline's models are noted, step by step."""
    steps: Steps = [[]]
    contexts = [""]

    def note(name: str, module: nn.Module, args: Any, kwargs: Any, answer: Any) -> None:
        picture = picture_of(module, args, kwargs)
        if picture is not None:
            outputs = [t for t in pytree.tree_leaves(answer) if isinstance(t, torch.Tensor)]
            prediction = outputs[0].detach().float().clone() if outputs else None
            steps[-1].append(Call(name, picture, contexts[-1], prediction))

    def stepping(own: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(own)
        def step(*args: Any, **kwargs: Any) -> Any:
            if steps[-1]:  # several schedulers may step, one after the other
                steps.append([])
            return own(*args, **kwargs)

        return step

    own_context = CacheMixin.cache_context

    @contextlib.contextmanager
    def cache_context(self: Any, name: str, **more: Any) -> Iterator[None]:
        contexts.append(name)
        try:
            with own_context(self, name, **more):
                yield
        finally:
            contexts.pop()

    with contextlib.ExitStack() as stack:
        for name, module in models(pipe).items():
            hook = functools.partial(note, name)
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        kinds: set[Any] = {type(p) for p in vars(pipe).values() if isinstance(p, SchedulerMixin)}
        for kind in kinds:  # the class, because some pipelines copy their scheduler
            stack.enter_context(mock.patch.object(kind, "step", stepping(kind.step)))
        stack.enter_context(mock.patch.object(CacheMixin, "cache_context", cache_context))
        yield steps


def picture_of(module: nn.Module, args: Any, kwargs: Any) -> torch.Tensor | list | None:
    """The first argument of a call that has rows: a tensor, or a list of tensors."""
    given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    for value in given.values():
        if isinstance(value, torch.Tensor) and value.ndim > 0:
            return value.detach().clone()
        if isinstance(value, list | tuple) and value and isinstance(value[0], torch.Tensor):
            return [v.detach().clone() for v in value]
    return None


def patterns(steps: Steps) -> tuple[Pattern, ...]:
    """How each denoiser is called in a step: the model whose call is the last one of the step."""
    ended = steps[:-1] or steps  # a pipeline that steps by itself shows one long step
    of: dict[str, Steps] = {}
    for step in ended:
        if step:
            of.setdefault(step[-1].name, []).append(step)
    return tuple(pattern(name, found) for name, found in of.items())


def pattern(name: str, steps: Steps) -> Pattern:
    """How a denoiser is called in these steps; the first may hold calls that prepare the run."""
    step = steps[min(1, len(steps) - 1)]
    calls = [c for c in step if c.name == name]
    others = dict.fromkeys(c.name for c in step if c.name != name)
    rows = [[len(c.picture) for c in s if c.name == name] for s in steps]
    return Pattern(
        name=name,
        calls=len(calls),
        rows=tuple(len(c.picture) for c in calls),
        parts=max(c.parts for c in calls),
        listed=isinstance(calls[-1].picture, list),
        contexts=tuple(c.context for c in calls if c.context),
        beside=tuple(others),
        always=all(some == rows[-1] for some in rows),
        effect=effect(calls),
    )


def effect(calls: list[Call]) -> float | None:
    """How far the predictions of two branches are apart, relative to their largest value."""
    first, last = calls[0].prediction, calls[-1].prediction
    if first is None or last is None:
        return None
    if len(calls) == 1:
        if (parts := calls[0].parts) == 1 or len(first) % parts:
            return None
        first, last = first.chunk(parts)[0], first.chunk(parts)[-1]
    if first.shape != last.shape:
        return None
    return ((first - last).abs().max() / first.abs().max().clamp_min(1e-12)).item()
