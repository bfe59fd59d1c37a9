"""What a user passes in a call, checked where the pipeline itself would go on with nonsense.

What the pipeline refuses is left to it: its own error names its own argument.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import sys
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from hybridiff_compile.blocks import given, hands_on, held, takes, walk
from hybridiff_compile.errors import ConfigError

# A pipeline's processor of pictures takes any other word for "np".
_OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_call(pipe: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments of a pipeline's call that it would take, and make no picture of.

    Args:
        pipe: a diffusers pipeline.
        args, kwargs: of its call.

    Raises:
        ConfigError: a number that is none (NaN, or an infinite scale), a count of steps that is
            not at least 1, or an output type that the pipeline would take for another one.
    """
    try:
        passed = given(pipe, tuple(args), kwargs)
    except TypeError:  # the pipeline says it better
        return
    for name, value in passed.items():
        numbers = value if isinstance(value, list | tuple) else (value,)
        for number in numbers:
            _check_number(name, number)
    times = [passed[name] for name in ("timesteps", "sigmas") if passed.get(name) is not None]
    if any(isinstance(some, list | tuple) and not some for some in times):
        raise ConfigError("timesteps and sigmas: a picture takes at least one step, pass some.")
    if not times:  # they replace the count
        _check_steps(passed.get("num_inference_steps", 1))
    _check_output_type(pipe, passed.get("output_type"))


def with_prompt(pipe: Any, call: Mapping[str, Any], prompt: str) -> dict[str, Any]:
    """Keywords of a pipeline's call, with a prompt if it takes one and none is given."""
    told = {**held(call.get("state")), **call}
    is_taken = takes(pipe, "prompt") or hands_on(pipe)
    if "prompt_embeds" in told or "prompt" in told or not is_taken:
        return dict(call)
    return {"prompt": prompt, **call}


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither True nor False.

    Raises:
        ConfigError: it names the value.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} must be True or False.")


def check_path(name: str, value: Any) -> Path:
    """A path from a str or a path.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise ConfigError(f"{name}={value!r} is not a path; pass a str or a pathlib.Path.")
    if not str(value) or "\0" in str(value):
        raise ConfigError(f"{name}={str(value)!r} cannot be a path; name a folder.")
    return Path(value)


def _check_number(name: str, value: Any) -> None:
    if not isinstance(value, Real) or isinstance(value, Integral):
        return
    if math.isnan(value) or ("scale" in name and math.isinf(value)):
        raise ConfigError(
            f"{name}={value!r} is no number to compute with, and gives no picture; pass a finite "
            "number."
        )


def _check_steps(steps: Any) -> None:
    if isinstance(steps, Integral) and (isinstance(steps, bool) or steps < 1):
        raise ConfigError(
            f"num_inference_steps={steps!r}: a picture takes at least one step; pass a whole "
            "number, such as 50."
        )


def _check_output_type(pipe: Any, output: Any) -> None:
    if not isinstance(output, str) or output in _OUTPUT_TYPES:
        return
    sources = [_source(type(part).__module__) for part in (pipe, *walk(pipe))]
    words = f'"{output}"', f"'{output}'"
    if all(sources) and not any(word in source for source in sources for word in words):
        raise ConfigError(
            f"output_type={output!r} is none that {type(pipe).__name__} knows; choose one of "
            f"{', '.join(_OUTPUT_TYPES)}."
        )


@functools.lru_cache
def _source(module: str) -> str:
    """A module's source; "" if it cannot be had."""
    try:
        return inspect.getsource(sys.modules[module])
    except (KeyError, OSError, TypeError):
        return ""


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise a ConfigError for a word that is none of the choices."""
    if value not in choices:
        raise ConfigError(f"{name}={value!r} is unknown; choose one of {', '.join(choices)}.")


def check_positive(name: str, value: float | str | None) -> None:
    """Raise a ConfigError for what is no number above 0 and finite; None was not given."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"{name}={value!r} must be above 0 and finite, as an int or float.")
