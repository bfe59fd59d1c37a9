"""What a plan is about: a denoiser's captured step, of a pipeline or of an architecture alone."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from hybridiff_compile.api import find_denoiser
from hybridiff_compile.arguments import with_prompt
from hybridiff_compile.capture.call import DenoiserCall
from hybridiff_compile.capture.trace import Captured, capture
from hybridiff_compile.config import SwitchSettings
from hybridiff_compile.errors import ConfigError, UnsupportedPipelineError
from hybridiff_compile.ir import BRANCHES
from hybridiff_compile.planning import fake_calls
from hybridiff_compile.planning.architectures import Architecture
from hybridiff_compile.share import share


@dataclass(frozen=True)
class Subject:
    """A denoiser to plan for.

    Attributes:
        name: of the model.
        captured: its step at branch batch B, on FakeTensors or on weights that are there.
        family: the paper's constants for its kind.
        height, width, frames: of what it makes, pixels.
        steps: of a run.
        batched: whether the pipeline makes one call of both branches a step.
    """

    name: str
    captured: Captured
    family: SwitchSettings
    height: int
    width: int
    frames: int
    steps: int
    batched: bool

    @property
    def denoiser(self) -> fx.GraphModule:
        """The graph of one branch, `(sample, e0, ...) -> eps`."""
        (step,) = self.captured.program.graphs
        denoiser = step.get_submodule("denoiser")
        assert isinstance(denoiser, fx.GraphModule)
        return denoiser

    @property
    def picture(self) -> torch.Tensor:
        """The noisy picture of one branch, a FakeTensor whose batch is B."""
        nodes = self.captured.program.graphs[0].graph.nodes
        return next(n.meta["val"] for n in nodes if n.name[:-2] == next(iter(self.captured.rows)))

    @property
    def changing(self) -> tuple[str, ...]:
        """Inputs of the programs that every step changes: the noisy picture and the time."""
        inputs = self.captured.program.contracts[0].inputs
        picture = next(iter(self.captured.rows))
        return tuple(n for n in inputs if n[:-2] == picture or n.startswith("timestep"))

    def what(self) -> dict[str, Any]:
        """Keys that rows of figures about it have in common."""
        size = {"steps": self.steps, "height": self.height, "width": self.width}
        dtype = str(self.picture.dtype).removeprefix("torch.")
        return {"model": self.name, **size, "batch": self.picture.shape[0], "dtype": dtype}


def of_architecture(found: Architecture, images: int, steps: int) -> Subject:
    """Trace an architecture without weights.

    Args:
        found: it, with the size of what to make.
        images: pictures for each prompt, B.
        steps: of a run.

    Raises:
        ConfigError: diffusers cannot make a denoiser of its config.
        CaptureError: it cannot be traced.
    """
    return Subject(
        name=found.name,
        captured=capture(*fake_calls.denoiser_and_call(found, images), None),
        family=found.family,
        height=found.height,
        width=found.width,
        frames=found.frames,
        steps=steps,
        batched=found.kind.batched,
    )


def of_call(pipe: Any, seen: DenoiserCall, steps: int, name: str) -> Subject:
    """Trace a pipeline's denoiser from a call of it; nothing is computed by it.

    Args:
        pipe: a diffusers pipeline.
        seen: its `first_call`.
        steps: of a run.
        name: of the model.

    Raises:
        UnsupportedPipelineError: it has no denoiser.
        CaptureError: the denoiser cannot be traced.
    """
    denoiser, family = find_denoiser(pipe)
    captured = capture(denoiser, seen, None)
    scale = int(getattr(pipe, "vae_scale_factor", 8))
    picture = next(iter(seen.tensors().values()))
    height, width = (scale * n for n in picture.shape[-2:])
    return Subject(name, captured, family, height, width, 1, steps, batched=True)


class _Seen(BaseException):
    """Ends a pipeline's call at its denoiser's first one; no pipeline catches it by mistake."""


def first_call(pipe: Any, call: Mapping[str, Any]) -> DenoiserCall:
    """The first call of its denoiser that a pipeline makes, which then ends.

    Args:
        pipe: a diffusers pipeline.
        call: keywords of the pipeline's call.

    Raises:
        UnsupportedPipelineError: it has no denoiser, or its call is not guided.
        ConfigError: the pipeline refuses the call.
    """
    denoiser, _ = find_denoiser(pipe)
    parameters = tuple(inspect.signature(denoiser.forward).parameters)
    seen: list[DenoiserCall] = []

    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(DenoiserCall.of(parameters, args, kwargs))
        raise _Seen

    hidden = dict(getattr(pipe, "_progress_bar_config", None) or {})
    pipe.set_progress_bar_config(**{**hidden, "disable": True})
    hook = denoiser.register_forward_pre_hook(see, with_kwargs=True)
    try:
        with torch.random.fork_rng(devices=[]):
            pipe(**with_prompt(pipe, call, ""))
    except _Seen:
        pass
    except (TypeError, ValueError) as e:
        raise ConfigError(f"{type(pipe).__name__} refuses this call: {e}") from e
    finally:
        hook.remove()
        pipe.set_progress_bar_config(**hidden)
    if not seen:
        raise UnsupportedPipelineError("the pipeline made a picture without calling its denoiser.")
    if not seen[0].is_doubled():
        raise UnsupportedPipelineError(
            "the pipeline's denoiser call is no [uncond, cond] batch: pass guidance_scale > 1, or "
            "plan by the name of its architecture, which knows pipelines that make a call for each "
            "branch."
        )
    if (count := seen[0].parts) != len(BRANCHES):
        placed = Counter(share([1] * count, 2))
        raise UnsupportedPipelineError(
            f"a step of this pipeline has {count} branches, of which rank 0 computes {placed[0]} "
            f"and rank 1 {placed[1]}: exact and hybrid run so. Plans are of steps of two branches; "
            "hybridiff bench --pipe measures this one."
        )
    return seen[0]
