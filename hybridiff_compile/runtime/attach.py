"""The way into a pipeline and out of it: one pipeline object is changed, never its class."""

from __future__ import annotations

import copyreg
import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from hybridiff_compile.errors import ClosedError, ConfigError, UnsupportedPipelineError
from hybridiff_compile.runtime.route import is_plain

#: Around one call of the pipeline; given the arguments of that call.
Around = Callable[..., AbstractContextManager[None]]

#: Where a pipeline has its denoiser; of a pair of pipelines, one has a prior, one a decoder.
PLACES = ("unet", "transformer", "prior", "decoder")

_PIPELINE = "_hybridiff_pipeline"  # on an attached pipeline's class


def find(pipe: Any) -> dict[str, nn.Module]:
    """A pipeline's denoisers by the attributes that they are at, the main one first.

    Others are modules of its class: one for the last steps, or for one branch.

    Raises:
        UnsupportedPipelineError: there is none.
    """
    main = next((name for name in PLACES if _is_denoiser(name, getattr(pipe, name, None))), None)
    if main is None:
        is_to_load = hasattr(pipe, "load_components")
        what = "Call its load_components(), or pass" if is_to_load else "Pass"
        raise UnsupportedPipelineError(
            f"{type(pipe).__name__} has no denoiser: none of {', '.join(PLACES)} is a module that "
            f"takes a time step. {what} a diffusers pipeline that has one."
        )
    denoiser = getattr(pipe, main)
    kind = type(denoiser)
    parts = vars(pipe).items()
    others = {n: p for n, p in parts if type(p) is kind and p is not denoiser}
    return {main: denoiser, **others}


def _is_denoiser(place: str, part: Any) -> bool:
    """Whether it is a module; a decoder may be one of latents, which is given no time step."""
    if not isinstance(part, nn.Module) or place in PLACES[:2]:
        return isinstance(part, nn.Module)
    return any("time" in name for name in inspect.signature(part.forward).parameters)


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
    if forward is not None and not is_plain(denoiser, forward):
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
    """Routes a pipeline's calls through `around`.

    The pipeline becomes an instance of a subclass of its class, with the same name, that only wraps
    `__call__`. `detach` undoes that. Copies, pickled ones too, are plain.
    """

    def __init__(self, pipe: Any, around: Around) -> None:
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
        pipe.__class__ = self._subclass

    def detach(self) -> None:
        """Leave the pipeline as it was found.

        Raises:
            ClosedError: the pipeline was given another class since, which must be undone first.
        """
        if type(self._pipe) is not self._subclass:
            raise ClosedError("the pipeline's class was changed after optimize(); undo that first.")
        self._pipe.__class__ = self._class


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
