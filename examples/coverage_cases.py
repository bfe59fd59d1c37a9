"""Tiny pipelines as diffusers' tests build them: random weights, guidance on, steps as wanted."""

from __future__ import annotations

import importlib
import inspect
import random
import sys
import unittest
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from coverage_calls import models
from diffusers import DiffusionPipeline
from torch import nn
from torch.utils import _pytree as pytree
from transformers import PreTrainedModel

SCALE = 4.0  # of guidance, where a test has it switched off
_STRENGTH = 0.8  # of noise that a given picture gets, at least: fewer steps are left out
_NOISE = 0.1  # of weights that are all alike
_NEGATIVE = "ugly and blurred"

#: What builds a pipeline, in diffusers' test classes.
_BUILDS = ("pipeline_class", "get_dummy_components", "get_dummy_inputs")

#: What a call returns, as arrays.
Arrays = list[np.ndarray]


def find(checkout: Path, file: str) -> list[str]:
    """Names of the classes of a test file that build a pipeline, each way to build it once.

    Args:
        checkout: of diffusers; its tests become importable.
        file: relative to the checkout.
    """
    module, found = import_tests(checkout, file), {}
    for name, test in vars(module).items():
        if inspect.isclass(test) and test.__module__ == module.__name__ and pipeline_of(test):
            found.setdefault(tuple(getattr(test, part) for part in _BUILDS), name)
    return list(found.values())


def import_tests(checkout: Path, file: str) -> Any:
    """The module of a test file."""
    if str(checkout) not in sys.path:
        sys.path.append(str(checkout))  # last: only its tests are wanted
    return importlib.import_module(file.removesuffix(".py").replace("/", "."))


def pipeline_of(test: type) -> type[DiffusionPipeline] | None:
    """The pipeline that a test class builds; None if it builds none."""
    kind = getattr(test, "pipeline_class", None)
    if not inspect.isclass(kind) or not issubclass(kind, DiffusionPipeline):
        return None
    build, inputs = (getattr(test, part, None) for part in _BUILDS[1:])
    if build is None or inputs is None:
        return None
    _, *others = inspect.signature(build).parameters.values()
    return None if any(p.default is p.empty for p in others) else kind


def name_of(kind: type) -> str:
    """The name of a pipeline in diffusers, also of a subclass that a test has."""
    return next(k.__name__ for k in kind.__mro__ if k.__module__.startswith("diffusers."))


class Made:
    """A tiny pipeline on the CPU, and its calls: each has the same inputs and random numbers.

    Attributes:
        pipe: the pipeline.
    """

    def __init__(self, test: type) -> None:
        """Build it.

        Args:
            test: class of diffusers' tests.
        """
        self._test = instance(test)
        torch.manual_seed(0)
        parts = self._test.get_dummy_components()
        kind = pipeline_of(test)
        assert kind is not None
        self.pipe: Any = kind(**parts)
        for part in vars(self.pipe).values():
            if isinstance(part, nn.Module):
                part.eval()
            if isinstance(part, PreTrainedModel):
                amplify(part)
        randomize(models(self.pipe))
        guide(self.pipe)
        self.pipe.set_progress_bar_config(disable=True)
        self._takes = inspect.signature(kind.__call__).parameters
        source = inspect.getsource(sys.modules[kind.__mro__[0].__module__])
        base = inspect.getsource(sys.modules[kind.__mro__[1].__module__])
        self._has_run = False
        self._output = "latent" if '"latent"' in source + base else None

    def call(self, steps: int) -> Arrays:
        """Make a picture.

        Args:
            steps: that are asked for; some pipelines take fewer.
        """
        invert = getattr(self._test, "get_dummy_inversion_inputs", None)
        seed_all()
        if invert is not None:  # an editing pipeline that takes a picture apart first
            self.pipe.invert(**{**given_by(invert), "num_inversion_steps": steps})
        given = given_by(self._test.get_dummy_inputs)
        given |= settings(self._takes, given, steps, self._output)
        seed_all()
        try:
            made = arrays(self.pipe(**given))
        except Exception:
            if self._output is None or self._has_run:
                raise
            self._output = None  # it knows the word, but takes another one here
            return self.call(steps)
        self._has_run = True
        return made


def instance(test: type) -> Any:
    """An object of a test class."""
    return test("get_dummy_components") if issubclass(test, unittest.TestCase) else test()


def seed_all() -> None:
    """Make what follows draw the same random numbers each time."""
    torch.manual_seed(123)
    np.random.seed(3)
    random.seed(3)


def given_by(inputs: Any) -> dict[str, Any]:
    """Inputs of a test, on the CPU."""
    takes = inspect.signature(inputs).parameters
    return dict(inputs("cpu") if "device" in takes else inputs())


# The default of the latter is for two steps.
_SET = {"pag_scale": SCALE, "intermediate_timesteps": None}


def settings(
    takes: Mapping[str, Any], given: Mapping[str, Any], steps: int, output: str | None
) -> dict[str, Any]:
    """What a call is given besides its inputs: steps, guidance, a negative prompt, latents out.

    Args:
        takes: parameters of the pipeline's call.
        given: inputs of the test.
        steps: that are wanted.
        output: type of the output; None leaves it to the test.
    """
    found: dict[str, Any] = {}
    for name in takes:
        is_told = given.get(name) is not None
        if name.endswith("num_inference_steps") and not given.get("timesteps"):
            found[name] = steps
        elif name in ("guidance_scale", "true_cfg_scale") or (
            name.endswith("_guidance_scale") and is_told
        ):
            value = given.get(name, takes[name].default)
            is_off = isinstance(value, int | float) and value <= 1
            if is_off or name == "true_cfg_scale":
                found[name] = SCALE
        elif name in _SET:
            found[name] = _SET[name]
        elif name == "strength":
            found[name] = max(_STRENGTH, given.get(name) or takes[name].default)
    prompt = given.get("prompt")
    if "negative_prompt" in takes and prompt is not None and not given.get("negative_prompt"):
        many = isinstance(prompt, list)
        found["negative_prompt"] = [_NEGATIVE] * len(prompt) if many else _NEGATIVE
    if "output_type" in takes and output is not None:
        found["output_type"] = output
    if "return_dict" in takes:
        found["return_dict"] = False
    return found


def guide(pipe: Any) -> None:
    """Switch the guidance of a pipeline's guider on, if it has one."""
    guider = getattr(pipe, "guider", None)
    if guider is not None and getattr(guider, "guidance_scale", SCALE) <= 1:
        pipe.guider = guider.new(guidance_scale=SCALE)


def amplify(encoder: nn.Module) -> None:
    """Scale weights that are tiny, as those of many tests are: every prompt would mean the same."""
    with torch.no_grad():
        for weight in encoder.parameters():
            if weight.is_floating_point() and 0 < (most := weight.abs().max()) < 0.1:
                weight.mul_(0.5 / most)


def randomize(parts: Mapping[str, nn.Module]) -> None:
    """Give weights that are zero, or all alike, random values: no weight is zero afterwards.

    Others keep the random values that they were made with.
    """
    generator = torch.Generator().manual_seed(7)
    for module in parts.values():
        for weight in module.parameters():
            if weight.is_floating_point() and weight.numel():
                _fill(weight.data, generator)


def _fill(weight: torch.Tensor, generator: torch.Generator) -> None:
    first = weight.flatten()[0]
    alike = torch.full_like(weight, bool((weight == first).all()), dtype=torch.bool)
    to_fill = alike | (weight == 0) | ~weight.isfinite()
    while to_fill.any():
        noise = _NOISE * torch.randn(weight.shape, generator=generator)
        noisy = torch.where(weight.isfinite(), weight, 0).float() + noise
        weight.copy_(torch.where(to_fill, noisy.to(weight.dtype), weight))
        to_fill = weight == 0


def arrays(made: Any) -> Arrays:
    """Every tensor, array and picture of what a pipeline returns, as float64."""
    leaves = pytree.tree_leaves(made, is_leaf=lambda x: isinstance(x, PIL.Image.Image))
    found = []
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            found.append(leaf.detach().double().numpy())
        elif isinstance(leaf, PIL.Image.Image):
            found.append(np.asarray(leaf, np.float64) / 255)
        elif isinstance(leaf, np.ndarray) and leaf.dtype != object:
            found.append(leaf.astype(np.float64))
    return found
