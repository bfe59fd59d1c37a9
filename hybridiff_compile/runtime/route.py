"""The way into one denoiser: its `forward` is routed, for all pipelines that share it."""

from __future__ import annotations

import copy
import functools
import inspect
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from hybridiff_compile.runtime.published import Published

#: Handles one denoiser call: (the denoiser's own forward, args, kwargs) -> what forward returns.
Intercept = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

_joining = threading.Lock()


class Route:
    """Routes a pipeline's calls of a denoiser through an intercept.

    The denoiser gets a `forward` of its own, which all pipelines of one denoiser share; copies of
    it, pickled ones too, are plain. `leave` undoes it, in whatever order.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self._routed = _join(denoiser, self)

    def leave(self) -> None:
        """Leave the denoiser as it was found.

        What was put on top of its forward meanwhile stays there, over the plain one.
        """
        _leave(self._routed, self)

    def follow(self, denoiser: nn.Module) -> None:
        """Route the denoiser that the pipeline was given in the place of its former one."""
        _leave(self._routed, self)
        self._routed = _join(denoiser, self)

    @property
    def denoiser(self) -> nn.Module:
        """The one whose calls are routed now."""
        return self._routed.denoiser

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of what its forward takes by position."""
        return self._routed.parameters

    @property
    def has_turn(self) -> bool:
        """Whether this thread is within a `turn`, of this pipeline or of one that shares it."""
        return self._routed.owner == threading.get_ident()

    @contextmanager
    def turn(self, intercept: Intercept) -> Iterator[None]:
        """Within this, the denoiser calls of this thread go through `intercept`.

        Pipelines that share a denoiser take turns.
        """
        routed = self._routed
        with routed.lock:
            routed.owner, routed.intercept = threading.get_ident(), intercept
            try:
                yield
            finally:
                routed.owner = routed.intercept = None

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        """Within this, the denoiser has its own forward: for tracing it."""
        attributes = vars(self._routed.denoiser)
        ours = attributes.pop("forward")
        try:
            yield
        finally:
            attributes["forward"] = ours

    def published(self) -> Published:
        """The denoiser's weights for workers to map, once for all pipelines that share it."""
        return self._routed.published()


def positional(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the parameters that a function may be given by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.items()
    return tuple(name for name, parameter in parameters if parameter.kind in kinds)


def is_plain(denoiser: nn.Module, forward: Any) -> bool:
    """Whether a forward on the instance is a routed one, or no other than the class's."""
    if isinstance(forward, _Routed):
        return forward.denoiser is denoiser
    function = getattr(forward, "__func__", None)
    return function is type(denoiser).forward and forward.__self__ is denoiser


class _Routed:
    """Stands in the place of a denoiser's forward, for all pipelines that are attached to it."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        self.own = types.MethodType(type(denoiser).forward, denoiser)
        self.attached: set[Route] = set()
        self.lock = threading.Lock()
        self.owner: int | None = None
        self.intercept: Intercept | None = None
        self._published: Published | None = None
        self.parameters = positional(self.own)
        functools.update_wrapper(self, self.own)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.intercept is None or self.owner != threading.get_ident():
            return self.own(*args, **kwargs)
        return self.intercept(self.own, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> types.MethodType:
        denoiser = copy.deepcopy(self.denoiser, memo)
        return types.MethodType(type(denoiser).forward, denoiser)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.denoiser, "forward")  # read before it has attributes: its class's

    def published(self) -> Published:
        if self._published is None:
            self._published = Published(self.denoiser)
        return self._published

    def close(self) -> None:
        if self._published is not None:
            self._published.close()
            self._published = None


def _join(denoiser: nn.Module, route: Route) -> _Routed:
    with _joining:
        routed = vars(denoiser).get("forward")
        if not (isinstance(routed, _Routed) and routed.denoiser is denoiser):
            routed = vars(denoiser)["forward"] = _Routed(denoiser)
        routed.attached.add(route)
        return routed


def _leave(routed: _Routed, route: Route) -> None:
    with _joining:
        routed.attached.discard(route)
        if not routed.attached:
            routed.close()
            if vars(routed.denoiser).get("forward") is routed:
                del vars(routed.denoiser)["forward"]
