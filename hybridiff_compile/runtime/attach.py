"""The way into a pipeline and out of it: one pipeline object is changed, never its class."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn

from hybridiff_compile.errors import ClosedError, ConfigError

#: Handles one denoiser call: (the denoiser's own forward, args, kwargs) -> what forward returns.
Intercept = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

_MARK = "_hybridiff_attached"


class Attachment:
    """Routes a pipeline's denoiser calls through `intercept`, and its calls through `around`.

    The denoiser gets a `forward` of its own; the pipeline becomes an instance of a subclass of its
    class, with the same name, that only wraps `__call__`. `detach` undoes both.
    """

    def __init__(
        self,
        pipe: Any,
        denoiser: nn.Module,
        around: Callable[[], AbstractContextManager[None]],
        intercept: Intercept,
    ) -> None:
        """Attach.

        Raises:
            ConfigError: the pipeline or its denoiser is attached already.
        """
        if hasattr(type(pipe), _MARK) or hasattr(denoiser.forward, _MARK):
            raise ConfigError(
                f"this {type(pipe).__name__} or its denoiser is optimized already; call restore() "
                "on that model first."
            )
        self._pipe, self._denoiser = pipe, denoiser
        self._class = type(pipe)
        self._subclass = _subclass(self._class, around)
        self._forward = _forward(denoiser, intercept)
        pipe.__class__ = self._subclass
        denoiser.forward = self._forward

    def detach(self) -> None:
        """Leave the pipeline and its denoiser as they were found.

        Raises:
            ClosedError: something else was attached on top, and must be taken off first.
        """
        if type(self._pipe) is not self._subclass:
            raise ClosedError("the pipeline's class was changed after optimize(); undo that first.")
        if self._denoiser.__dict__.get("forward") is not self._forward:
            raise ClosedError(
                "the denoiser's forward was replaced after optimize(); undo that first."
            )
        self._pipe.__class__ = self._class
        del self._denoiser.__dict__["forward"]

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        """Within this, the denoiser has its own forward: for tracing it."""
        del self._denoiser.__dict__["forward"]
        try:
            yield
        finally:
            self._denoiser.forward = self._forward


def _forward(denoiser: nn.Module, intercept: Intercept) -> Callable[..., Any]:
    own = denoiser.forward

    @functools.wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return intercept(own, args, kwargs)

    setattr(forward, _MARK, True)
    return forward


def _subclass(base: type, around: Callable[[], AbstractContextManager[None]]) -> type:
    @functools.wraps(base.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with around():
            return base.__call__(self, *args, **kwargs)

    # Saving a pipeline and many checks go by these names.
    names = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    return type(base.__name__, (base,), {**names, "__call__": call, _MARK: True})
