"""What a pipeline takes, gives and shows, be it one class or put together of blocks."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_BAR = "_progress_bar_config"


def walk(pipe: Any) -> Iterator[Any]:
    """The blocks that a pipeline runs, and those within them; none if it has no blocks."""
    waiting = [blocks] if (blocks := _blocks(pipe)) is not None else []
    while waiting:
        yield (block := waiting.pop())
        waiting += getattr(block, "sub_blocks", {}).values()


def takes(pipe: Any, name: str) -> bool:
    """Whether a pipeline's call, or a block that it runs, has a keyword of this name."""
    if name in inspect.signature(type(pipe).__call__).parameters:
        return True
    return (blocks := _blocks(pipe)) is not None and name in blocks.input_names


def hands_on(pipe: Any) -> bool:
    """Whether a pipeline's call takes whatever keywords, for something that it does not name."""
    parameters = inspect.signature(type(pipe).__call__).parameters.values()
    return _blocks(pipe) is None and any(p.kind is p.VAR_KEYWORD for p in parameters)


def outputs(pipe: Any) -> list[str] | None:
    """The names that a call of a pipeline of blocks gives values of; None without blocks."""
    return None if (blocks := _blocks(pipe)) is None else blocks.output_names


def given(pipe: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a call of a pipeline passes, by name; with what a state of an earlier one holds.

    Raises:
        TypeError: the pipeline takes no such arguments.
    """
    signature = inspect.signature(type(pipe).__call__)
    found = signature.bind_partial(pipe, *args, **kwargs).arguments
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            found |= found.pop(name, {})
    return {**held(found.get("state")), **found}


def held(state: Any) -> Mapping[str, Any]:
    """The values that a state holds, which a pipeline of blocks goes on from; empty without one."""
    values = getattr(state, "values", None)
    return values if isinstance(values, Mapping) else {}


@contextmanager
def without_bars(pipe: Any) -> Iterator[None]:
    """Within this, neither a pipeline nor a block of it shows how far it is."""
    bars = [b for b in (pipe, *walk(pipe)) if hasattr(b, "set_progress_bar_config")]
    own = [vars(bar).get(_BAR) for bar in bars]
    for bar, config in zip(bars, own, strict=True):
        bar.set_progress_bar_config(**{**(config or {}), "disable": True})
    try:
        yield
    finally:
        for bar, config in zip(bars, own, strict=True):
            if config is None:
                vars(bar).pop(_BAR, None)
            else:
                setattr(bar, _BAR, config)


def _blocks(pipe: Any) -> Any:
    return getattr(pipe, "_blocks", None)  # its `blocks` is a copy
