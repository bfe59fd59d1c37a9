"""The way into a pipeline and out of it: one pipeline object is changed, never its class."""

from __future__ import annotations

import copy
import copyreg
import functools
import inspect
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from hybridiff_compile.errors import ClosedError, ConfigError, UnsupportedPipelineError
from hybridiff_compile.runtime.weights import Published

#: Handles one denoiser call: (the denoiser's own forward, args, kwargs) -> what forward returns.
Intercept = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

#: Around one call of the pipeline; given the arguments of that call.
Around = Callable[..., AbstractContextManager[None]]

#: Where a pipeline has its denoiser.
PLACES = ("unet", "transformer")

_PIPELINE = "_hybridiff_pipeline"  # on an attached pipeline's class
_joining = threading.Lock()


def find(pipe: Any) -> tuple[str, nn.Module]:
    """A pipeline's denoiser, and the attribute that it is at.

    Raises:
        UnsupportedPipelineError: there is none.
    """
    for name in PLACES:
        if isinstance(denoiser := getattr(pipe, name, None), nn.Module):
            return name, denoiser
    is_to_load = hasattr(pipe, "load_components")
    what = "Call its load_components(), or pass" if is_to_load else "Pass"
    raise UnsupportedPipelineError(
        f"{type(pipe).__name__} has no denoiser: neither `unet` nor `transformer` is a module. "
        f"{what} a diffusers pipeline that has one."
    )


def alike(pipe: Any, denoiser: nn.Module) -> list[str]:
    """Names of a pipeline's other denoisers: its modules of the same class."""
    parts = vars(pipe).items()
    return [n for n, part in parts if type(part) is type(denoiser) and part is not denoiser]


def check(denoiser: nn.Module) -> None:
    """Refuse a denoiser whose calls do more than its class says, which a program would not do.

    Raises:
        UnsupportedPipelineError: it is compiled or offloaded, its `forward` was replaced on the
            instance, or it has hooks.
    """
    name = type(denoiser).__name__
    if hasattr(denoiser, "_orig_mod") or getattr(denoiser, "_compiled_call_impl", None):
        raise UnsupportedPipelineError(
            "the denoiser is compiled by torch.compile or its own compile(), which no rank would "
            "follow; pass the pipeline with the plain module. backend='inductor' compiles the "
            "ranks' programs."
        )
    if hasattr(denoiser, "_hf_hook"):
        raise UnsupportedPipelineError(
            f"this {name} is offloaded by accelerate, and every rank holds the whole model; call "
            "pipe.remove_all_hooks() (or disable_auto_cpu_offload() of its components manager), "
            "and offload the other parts only (enable_group_offload with exclude_modules)."
        )
    if hooks := getattr(getattr(denoiser, "_diffusers_hook", None), "hooks", None):
        raise UnsupportedPipelineError(
            f"hooks of diffusers ({', '.join(hooks)}) run this {name}, and no rank would run them; "
            "switch them off: a cache of features by disable_cache(), offloading by leaving the "
            "denoiser out (enable_group_offload with exclude_modules)."
        )
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


def refuse_autocast(device: torch.device) -> None:
    """Raise a ConfigError within torch.autocast, which the ranks could not follow."""
    if torch.is_autocast_enabled(device.type):
        raise ConfigError(
            "torch.autocast does not reach the workers; convert the pipeline instead: "
            "pipe.to(dtype=...)."
        )


class Attachment:
    """Routes a pipeline's denoiser calls through an intercept, and its calls through `around`.

    The pipeline becomes an instance of a subclass of its class, with the same name, that only wraps
    `__call__`; the denoiser gets a `forward` of its own, which all pipelines of one denoiser share.
    `detach` undoes both, in whatever order. Copies of either, pickled ones too, are plain.
    """

    def __init__(self, pipe: Any, denoiser: nn.Module, around: Around) -> None:
        """Attach.

        Raises:
            ConfigError: the pipeline is attached already.
        """
        if getattr(type(pipe), _PIPELINE, None) is pipe:
            raise ConfigError(
                f"this {type(pipe).__name__} is optimized already; call restore() on that model "
                "first."
            )
        self._pipe, self._class = pipe, type(pipe)
        self._subclass = _subclass(pipe, around)
        self._routed = _join(denoiser, self)
        pipe.__class__ = self._subclass

    def detach(self) -> None:
        """Leave the pipeline and its denoiser as they were found.

        What was put on top of the denoiser's forward meanwhile stays there, over the plain one.

        Raises:
            ClosedError: the pipeline was given another class since, which must be undone first.
        """
        if type(self._pipe) is not self._subclass:
            raise ClosedError("the pipeline's class was changed after optimize(); undo that first.")
        self._pipe.__class__ = self._class
        _leave(self._routed, self)

    def follow(self, denoiser: nn.Module) -> None:
        """Attach to the denoiser that the pipeline was given in the place of its former one."""
        _leave(self._routed, self)
        self._routed = _join(denoiser, self)

    @property
    def denoiser(self) -> nn.Module:
        """The one whose calls are routed now."""
        return self._routed.denoiser

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of what its forward takes."""
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


class _Routed:
    """Stands in the place of a denoiser's forward, for all pipelines that are attached to it."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        self.own = types.MethodType(type(denoiser).forward, denoiser)
        self.attached: set[Attachment] = set()
        self.lock = threading.Lock()
        self.owner: int | None = None
        self.intercept: Intercept | None = None
        self._published: Published | None = None
        self.parameters = tuple(inspect.signature(self.own).parameters)
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
        if self._published is None or not self._published.is_current():
            self.close()
            self._published = Published(self.denoiser)
        return self._published

    def close(self) -> None:
        if self._published is not None:
            self._published.close()
            self._published = None


def _join(denoiser: nn.Module, attachment: Attachment) -> _Routed:
    with _joining:
        routed = vars(denoiser).get("forward")
        if not (isinstance(routed, _Routed) and routed.denoiser is denoiser):
            routed = vars(denoiser)["forward"] = _Routed(denoiser)
        routed.attached.add(attachment)
        return routed


def _leave(routed: _Routed, attachment: Attachment) -> None:
    with _joining:
        routed.attached.discard(attachment)
        if not routed.attached:
            routed.close()
            if vars(routed.denoiser).get("forward") is routed:
                del vars(routed.denoiser)["forward"]


def _is_ours_or_plain(denoiser: nn.Module, forward: Any) -> bool:
    """Whether a forward on the instance is an attached one, or no other than the class's."""
    if isinstance(forward, _Routed):
        return forward.denoiser is denoiser
    function = getattr(forward, "__func__", None)
    return function is type(denoiser).forward and forward.__self__ is denoiser


def _subclass(pipe: Any, around: Around) -> type:
    base = type(pipe)

    @functools.wraps(base.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is not pipe:
            return base.__call__(self, *args, **kwargs)
        with around(*args, **kwargs):
            return base.__call__(self, *args, **kwargs)

    def new(_: type, *args: Any, **kwargs: Any) -> Any:
        return base(*args, **kwargs)  # made by type(pipe)(...) or pipe.from_pipe(...): a plain one

    def reduce(self: Any, protocol: Any) -> Any:
        function, args, *rest = base.__reduce_ex__(self, protocol)  # pyright: ignore
        # pickle compares the class that is given to this function with the object's own.
        if function is copyreg.__newobj__:  # pyright: ignore
            function = base.__new__
        return function, tuple(base if a is subclass else a for a in args), *rest

    # Saving a pipeline and many checks go by these names.
    attributes = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__call__": call,
        "__new__": new,
        "__reduce_ex__": reduce,
        _PIPELINE: pipe,
    }
    return (subclass := type(base.__name__, (base,), attributes))
