"""The way into a pipeline and out of it: one pipeline object is changed, never its class."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from hybridiff_compile.errors import ClosedError, ConfigError, UnsupportedPipelineError

#: Handles one denoiser call: (the denoiser's own forward, args, kwargs) -> what forward returns.
Intercept = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

#: On what is attached: the pipeline or the denoiser that it was attached to. A deep copy has the
#: mark of its original.
_MARK = "_hybridiff_attached"


def check(denoiser: nn.Module) -> None:
    """Refuse a denoiser whose calls do more than its class says, which a program would not do.

    Raises:
        UnsupportedPipelineError: its `forward` was replaced on the instance, or it has hooks.
    """
    name = type(denoiser).__name__
    forward = vars(denoiser).get("forward")
    if forward is not None and not _is_ours_or_plain(denoiser, forward):
        what = getattr(forward, "__qualname__", type(forward).__name__)
        raise UnsupportedPipelineError(
            f"the forward of this {name} was replaced on the instance by {what}, which the ranks "
            "would not run; undo that, or make it the forward of a subclass."
        )
    hooks = (*denoiser._forward_pre_hooks.values(), *denoiser._forward_hooks.values())
    if hooks:
        names = ", ".join(getattr(h, "__qualname__", type(h).__name__) for h in hooks)
        raise UnsupportedPipelineError(
            f"this {name} has forward hooks of its own ({names}), which would run in the ranks' "
            "programs and again around them; remove them, or register them on a module in it."
        )


def check_call(pipe: Any, denoiser: nn.Module, device: torch.device) -> None:
    """Refuse a call of an optimized pipeline that the ranks could not follow.

    Raises:
        ConfigError: under autocast.
        UnsupportedPipelineError: the pipeline was given another denoiser since `optimize`, or its
            denoiser was given hooks or another forward.
    """
    if torch.is_autocast_enabled(device.type):
        raise ConfigError(
            "torch.autocast does not reach the workers; convert the pipeline instead: "
            "pipe.to(dtype=...)."
        )
    if not any(getattr(pipe, n, None) is denoiser for n in ("unet", "transformer")):
        raise UnsupportedPipelineError(
            "the pipeline was given another denoiser after optimize(); call restore() and "
            "optimize(pipe) again."
        )
    check(denoiser)


class Attachment:
    """Routes a pipeline's denoiser calls through `intercept`, and its calls through `around`.

    `around` is given the arguments of a call of the pipeline, `intercept` those of the denoiser.

    The denoiser gets a `forward` of its own; the pipeline becomes an instance of a subclass of its
    class, with the same name, that only wraps `__call__`. `detach` undoes both. Deep copies
    of either behave as if nothing had been attached.
    """

    def __init__(
        self,
        pipe: Any,
        denoiser: nn.Module,
        around: Callable[..., AbstractContextManager[None]],
        intercept: Intercept,
    ) -> None:
        """Attach.

        Raises:
            ConfigError: the pipeline or its denoiser is attached already.
        """
        if getattr(type(pipe), _MARK, None) is pipe or _owner(denoiser) is denoiser:
            raise ConfigError(
                f"this {type(pipe).__name__} or its denoiser is optimized already; call restore() "
                "on that model first."
            )
        if hasattr(type(pipe), _MARK):  # a copy takes off what it brought from its original
            pipe.__class__ = type(pipe).__base__
        vars(denoiser).pop("forward", None)
        self._pipe, self._denoiser = pipe, denoiser
        self._class = type(pipe)
        self._subclass = _subclass(pipe, around)
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


def _owner(denoiser: nn.Module) -> Any:
    """The module that this module's forward was attached to; None if none was."""
    return getattr(vars(denoiser).get("forward"), _MARK, None)


def _is_ours_or_plain(denoiser: nn.Module, forward: Any) -> bool:
    """Whether a forward on the instance is an attached one, or no other than the class's."""
    function = getattr(forward, "__func__", None)  # a wrapper has the mark too, but is no method
    is_known = function is type(denoiser).forward or hasattr(function, _MARK)
    return is_known and forward.__self__ is denoiser


def _forward(denoiser: nn.Module, intercept: Intercept) -> types.MethodType:
    own = denoiser.forward

    @functools.wraps(type(denoiser).forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self is not denoiser:  # a deep copy, with weights of its own
            return type(self).forward(self, *args, **kwargs)
        return intercept(own, args, kwargs)

    setattr(forward, _MARK, denoiser)
    # A bound method, because a deep copy of one is bound to the copy of the module.
    return types.MethodType(forward, denoiser)


def _subclass(pipe: Any, around: Callable[..., AbstractContextManager[None]]) -> type:
    base = type(pipe)

    @functools.wraps(base.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is not pipe:  # a copy
            return base.__call__(self, *args, **kwargs)
        with around(*args, **kwargs):
            return base.__call__(self, *args, **kwargs)

    # Saving a pipeline and many checks go by these names.
    names = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    return type(base.__name__, (base,), {**names, "__call__": call, _MARK: pipe})
