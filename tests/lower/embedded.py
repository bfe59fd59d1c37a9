"""Denoisers as the pipelines call them: the Toy and the embedded models, captured once."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import fx

from hybridiff_compile.capture.call import DenoiserCall
from hybridiff_compile.capture.trace import Captured, capture
from hybridiff_compile.config import Mode
from hybridiff_compile.ir import Phase, RankProgram, StepProgram
from hybridiff_compile.passes import build_programs
from hybridiff_compile.passes.cut_stages import stages
from tests import pipelines, toy


class _Recorded(BaseException):
    """Ends a pipeline's call at its first denoiser call."""


@dataclass(frozen=True)
class Case:
    """A captured denoiser with one of its calls."""

    captured: Captured
    call: DenoiserCall

    @property
    def denoiser(self) -> fx.GraphModule:
        module = self.captured.program.graphs[0].get_submodule("denoiser")
        assert isinstance(module, fx.GraphModule)
        return module

    @functools.cached_property
    def stages(self) -> tuple[fx.GraphModule, fx.GraphModule]:
        return stages(self.denoiser)

    def programs(self, rank: int, mode: Mode = "paper") -> list[RankProgram]:
        """A rank's programs, one a phase; in "paper" they share their stages."""
        return [RankProgram.of(p, rank) for p in self._built[mode].values()]

    @functools.cached_property
    def _built(self) -> dict[Mode, dict[Phase, StepProgram]]:
        program = self.captured.program
        return {mode: build_programs(program, mode) for mode in get_args(Mode)}

    def inputs(self, part: fx.GraphModule, branch: int = 1) -> dict[str, torch.Tensor]:
        """What the pipeline gave this branch, of what a part takes; the cut is not among it."""
        tensors = self.call.branch(branch).tensors()
        return {n: tensors[n] for n in placeholders(part) if n in tensors}


def placeholders(part: fx.GraphModule) -> list[str]:
    return [n.name for n in part.graph.nodes if n.op == "placeholder"]


@functools.cache
def case(name: str) -> Case:
    """One of NAMES; programs are never edited, so tests share it."""
    if name == "toy":
        return Case(toy.captured(), toy.call_of())
    pipe = pipelines.load(name)
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    parameters, forward = tuple(inspect.signature(denoiser.forward).parameters), denoiser.forward

    def record(*args: Any, **kwargs: Any) -> None:
        raise _Recorded(args, kwargs)

    denoiser.forward = record
    try:
        pipelines.latents(pipe, name)
        raise AssertionError("the pipeline did not call its denoiser")
    except _Recorded as recorded:
        args, kwargs = recorded.args
    finally:
        denoiser.forward = forward
    call = DenoiserCall.of(parameters, args, kwargs)

    def batched() -> Any:
        with torch.no_grad():
            return denoiser(*args, **kwargs)

    return Case(capture(denoiser, call, batched()), call)
