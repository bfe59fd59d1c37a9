"""What a value holds, and where: containers, attributes, closures, globals that its code names.

A denoiser's forward reads more than its modules: a hook has a closure, a processor is of a class
with settings, and either may name a global of its script. Of code, only what belongs to users is
followed, by the names in it: a walk through any function of any module reaches the whole program.
"""

from __future__ import annotations

import argparse
import dis
import functools
import gc
import inspect
import sys
import threading
import types
import weakref
from collections import deque
from typing import Any

import torch
from torch import nn

from hybridiff_compile.capture.place import PLAIN, Content, Names, Place, attribute
from hybridiff_compile.capture.told import count_of

#: Objects that are looked at; more hold a whole program, not a denoiser.
MOST = 500_000

_CONTAINERS = (dict, list, tuple, set, frozenset, deque)

# The code and the globals of these are no user's: they note what changes by itself.
_LIBRARIES = sys.stdlib_module_names | {
    *("torch", "torchao", "torchvision", "triton", "numpy", "PIL", "tqdm", "xformers"),
    *("diffusers", "transformers", "accelerate", "peft", "bitsandbytes", "huggingface_hub"),
    *("safetensors", "hybridiff_compile"),
}
# The objects of these change by themselves, whatever holds them.
_RESTLESS = (
    "logging",
    "threading",
    "tqdm",
    "torch._dynamo",
    "torch._inductor",
    "hybridiff_compile",
)
#: Made for settings, or for passing them on.
_NAMESPACES = (types.SimpleNamespace, argparse.Namespace, threading.local)
_PASSED_ON = (types.MappingProxyType, weakref.ref)

_BOUND = (types.BuiltinFunctionType, types.MethodWrapperType)
_SLOT = types.MemberDescriptorType
_INNER = {
    types.FunctionType: ("__code__", "__closure__", "__defaults__", "__kwdefaults__"),
    types.MethodType: ("__self__", "__func__"),
    types.BuiltinFunctionType: ("__self__",),
    types.MethodWrapperType: ("__self__",),
    types.CellType: ("cell_contents",),
    functools.partial: ("func", "args", "keywords"),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget",),
}
_CALLED = ("forward", "__call__")


def places(value: Any) -> list[Place]:
    """Where a value holds what it is made of; none for a tensor, and for what cannot be seen into.

    The class of an object is no such place; see `has_code`.
    """
    closed = (*PLAIN, torch.Tensor, types.ModuleType, types.CodeType)
    if isinstance(value, closed) or _is_restless(type(value)):
        return []
    if isinstance(value, type):
        return _of_class(value)
    if isinstance(value, _PASSED_ON):
        return _behind(value)
    if isinstance(value, _BOUND) and isinstance(value.__self__, type | types.ModuleType | None):
        return []
    names, found = _fixed(type(value)), []
    if names:
        found.append(Names(value, names))
    if isinstance(value, types.FunctionType):
        found += _globals(value)
    elif isinstance(value, types.MethodType):
        return found + _methods(type(value.__self__), names_in(value.__func__))
    if isinstance(value, _CONTAINERS):
        found.append(Content(value))
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict) and (attributes or not isinstance(value, _CONTAINERS)):
        found.append(Content(attributes))
    return found


def _behind(value: types.MappingProxyType[Any, Any] | weakref.ref[Any]) -> list[Place]:
    """Where what a value passes on holds its own."""
    if isinstance(value, weakref.ref):
        return places(value())
    return [Content(owner) for owner in gc.get_referents(value) if isinstance(owner, dict)]


@functools.lru_cache(4096)
def has_code(kind: type) -> bool:
    """Whether a class may have settings, or code that a user has put there."""
    top = kind.__module__.partition(".")[0]
    return top != "torch" and top not in sys.stdlib_module_names and not _is_restless(kind)


@functools.lru_cache(4096)
def _fixed(kind: type) -> tuple[str, ...]:
    """The attributes that are in no `__dict__`: slots, and those of functions and the like."""
    found = next((_INNER[c] for c in kind.__mro__ if c in _INNER), ())
    slots = [vars(c).items() for c in kind.__mro__ if "__slots__" in vars(c)]
    return found + tuple(n for s in slots for n, v in s if isinstance(v, _SLOT))


@functools.lru_cache(4096)
def _is_restless(kind: type) -> bool:
    """A pipeline and its schedulers register a config: each step changes them."""
    if issubclass(kind, nn.Module):
        return False
    return hasattr(kind, "register_to_config") or any(_is_in(c, _RESTLESS) for c in kind.__mro__)


def _is_in(kind: type, packages: tuple[str, ...]) -> bool:
    return any(f"{kind.__module__}.".startswith(f"{name}.") for name in packages)


def is_users(module: str | None) -> bool:
    """Whether a module of this name is a user's, not a library's."""
    return (module or "__main__").partition(".")[0] not in _LIBRARIES


def _is_setting(value: Any) -> bool:
    """Whether a global, or an attribute of a class, is what a user's code may have set."""
    if isinstance(
        value, (*PLAIN, *_CONTAINERS, torch.Tensor, nn.Module, *_NAMESPACES, *_PASSED_ON)
    ):
        return True
    if isinstance(value, types.FunctionType):
        return is_users(value.__globals__.get("__name__"))
    if isinstance(value, types.MethodType | functools.partial) or count_of(value):
        return True
    if has_config(value):
        return True
    return is_users((value if isinstance(value, type) else type(value)).__module__)


@functools.lru_cache(4096)
def _named(code: types.CodeType) -> tuple[tuple[str, ...], frozenset[str]]:
    """The globals that code reads or sets, and all names in it, those of inner functions too."""
    found = {i.argval for i in dis.get_instructions(code) if i.opname.endswith("_GLOBAL")}
    names = set(code.co_names)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            loaded, more = _named(inner)
            found, names = found | set(loaded), names | more
    return tuple(sorted(found)), frozenset(names)


def names_in(function: Any) -> frozenset[str]:
    """All names of globals and attributes in a function, and in its inner ones."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return frozenset() if code is None else _named(code)[1]


def _globals(function: types.FunctionType) -> list[Place]:
    """Settings among the globals that a user's function names, and in modules and pipelines."""
    space = function.__globals__
    if not is_users(space.get("__name__")):
        return []
    loaded, names = _named(function.__code__)
    found: list[Place] = [Names(space, tuple(n for n in loaded if _is_setting(space.get(n))))]
    cells = [attribute(cell, "cell_contents") for cell in function.__closure__ or ()]
    for value in [*map(space.get, loaded), *cells]:
        if isinstance(value, types.ModuleType) and is_users(value.__name__):
            inside = sorted(n for n in names & vars(value).keys() if _is_setting(vars(value)[n]))
            found.append(Names(vars(value), tuple(inside)))
    return found


def has_config(value: Any) -> bool:
    """Whether it is a pipeline, or a scheduler."""
    return _is_restless(type(value)) and hasattr(value, "config")


def _of_class(kind: type) -> list[Place]:
    """Settings of a user's class, and what is called of one that is not torch's."""
    if not has_code(kind):
        return []
    found: list[Place] = []
    for c in kind.__mro__:
        if is_users(c.__module__):
            plain = [n for n, v in vars(c).items() if n[:2] != "__" and _is_setting(v)]
            plain = [n for n in plain if not isinstance(vars(c)[n], types.FunctionType)]
            found += [Names(c, tuple(plain))] if plain else []
    return found + _methods(kind, frozenset(_CALLED))


def _methods(kind: type, names: frozenset[str]) -> list[Place]:
    """The methods and properties of these names, and those that a user's methods name in turn."""
    found: dict[tuple[type, str], Place] = {}
    todo = [(c, name) for c in kind.__mro__ if has_code(c) for name in names & vars(c).keys()]
    while todo:
        c, name = todo.pop()
        made = vars(c)[name]
        function = getattr(made, "__func__", getattr(made, "fget", made))
        if not isinstance(function, types.FunctionType) or (c, name) in found:
            continue
        found[c, name] = Names(c, (name,))
        if is_users(c.__module__):
            more = names_in(function)
            todo += [(b, n) for b in kind.__mro__ if has_code(b) for n in more & vars(b).keys()]
    return [found[place] for place in sorted(found, key=lambda p: (p[0].__qualname__, p[1]))]
