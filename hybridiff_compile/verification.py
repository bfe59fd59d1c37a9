"""A model's pictures against those of one device: the user's pipeline, prompt and seeds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

import numpy as np
import torch

from hybridiff_compile.arguments import check_call
from hybridiff_compile.blocks import held, outputs, takes
from hybridiff_compile.errors import ConfigError, UnsupportedPipelineError
from hybridiff_compile.quality import (
    Pictures,
    lpips,
    max_abs_error,
    psnr_db,
    relative_error,
    ssim,
)
from hybridiff_compile.runtime import sampler
from hybridiff_compile.runtime.report import RunReport
from hybridiff_compile.session import Session

_CALLBACK = "callback_on_step_end"


@dataclass(frozen=True, slots=True)
class Verification:
    """How close a model comes to one device that runs the branches one after the other.

    Attributes:
        mode: of the model.
        seeds: that were compared, one call each.
        psnr_db: mean over pictures, 100 for an identical one; None if no pictures were made.
        ssim: mean over pictures; None also where torchmetrics is not installed.
        lpips: mean over pictures; None also where its network's weights are not on this machine.
        max_abs_error: largest difference of the final latents; 0 means the same bits.
        error_by_step: after each step, mean|latents - reference| / mean|reference|; mean of seeds.
            Where the pipeline takes no callback, its latents are what its scheduler makes.
        steps_by_phase: of the model's calls, mean over seeds.
        seconds, one_device_seconds: of a call, median over seeds. Preparing programs is not in it;
            what else a first call takes longer for is: give three seeds or more to be rid of it.
    """

    mode: str
    seeds: tuple[int, ...]
    psnr_db: float | None
    ssim: float | None
    lpips: float | None
    max_abs_error: float
    error_by_step: tuple[float, ...]
    steps_by_phase: dict[str, float]
    seconds: float
    one_device_seconds: float

    def __str__(self) -> str:
        """The figures, a line each."""
        first = next((i for i, error in enumerate(self.error_by_step) if error), None)
        same = "0: the same bits" if first is None else None
        begins = f"{self.error_by_step[-1]:.2e} of their size, from step {first} on"
        phases = ", ".join(f"{n:g} {name}" for name, n in self.steps_by_phase.items() if n)
        seconds = f"{self.seconds:.2f} a call; one device, branch by branch: "
        lines = {
            "mode": f"{self.mode}, against one device that runs the branches one after the other",
            "seeds": ", ".join(str(seed) for seed in self.seeds),
            "steps": phases,
            "PSNR": _text(self.psnr_db, ".1f", " dB"),
            "SSIM": _text(self.ssim, ".4f", missing="; it takes RGB pictures and torchmetrics"),
            "LPIPS": _text(self.lpips, ".4f", missing="; it takes that and torchvision's AlexNet"),
            "max error": same or f"{self.max_abs_error:.2e} of the final latents",
            "mean error": same or begins,
            "seconds": f"{seconds}{self.one_device_seconds:.2f}",
        }
        return "\n".join(f"{name:<11}{text}" for name, text in lines.items())


def _text(value: float | None, form: str, unit: str = "", missing: str = "") -> str:
    return f"not measured{missing}" if value is None else f"{value:{form}}{unit}"


def check(pipe: Any, prompt: Any, seeds: Sequence[int], call: Mapping[str, Any]) -> None:
    """Refuse what cannot be compared.

    Raises:
        ConfigError: no prompt, seeds that are none, or keywords that are this function's own
            or give no picture.
        UnsupportedPipelineError: the pipeline does not show its latents after each step.
    """
    told = {**held(call.get("state")), **call}
    if not (prompt or "prompt_embeds" in told or told.get("prompt")):
        raise ConfigError(f"prompt={prompt!r}: pass the prompt of the pictures to compare.")
    if isinstance(seeds, str) or not isinstance(seeds, Sequence | range) or not seeds:
        raise ConfigError(f"seeds={seeds!r} must be whole numbers, such as (0, 1, 2).")
    if any(type(seed) is not int or not 0 <= seed < 2**64 for seed in seeds):
        raise ConfigError(
            f"seeds={tuple(seeds)!r} must be whole numbers from 0 to 2**64 - 1, such as (0, 1, 2)."
        )
    check_call(pipe, (), call)  # before output_type is made "np"
    if "generator" in call:
        raise ConfigError("verify() makes a generator of each seed; drop generator, pass seeds.")
    taken = [name for name in call if name.startswith(_CALLBACK)]
    if taken:
        raise ConfigError(f"verify() watches the steps itself; drop {', '.join(taken)}.")
    if not (takes(pipe, _CALLBACK) or _has_sampler(pipe)):
        raise UnsupportedPipelineError(
            f"{type(pipe).__name__} takes no {_CALLBACK} and has no scheduler, so its latents "
            "cannot be compared step by step; compare its pictures yourself."
        )


def _has_sampler(pipe: Any) -> bool:
    return callable(getattr(getattr(pipe, "scheduler", None), "step", None))


def verify(
    pipe: Any, session: Session, prompt: Any, seeds: Sequence[int], call: Mapping[str, Any]
) -> Verification:
    """Make the same pictures both ways and compare them.

    Args:
        pipe: that the session serves.
        session: its programs are prepared, if it needs any.
        prompt, seeds, call: as checked.

    Raises:
        ConfigError: no step of the calls was guided.
    """
    pairs: list[tuple[_Call, _Call]] = []
    for seed in seeds:
        with session.here.apart():
            reference = _make(pipe, session, prompt, seed, call)
        made = _make(pipe, session, prompt, seed, call)
        if not made.report.steps:
            raise ConfigError(
                "no step of this call was guided, so there is nothing that a model of several "
                "ranks would do differently; set guidance_scale above 1."
            )
        pairs.append((made, reference))
    calls, references = zip(*pairs, strict=True)
    by_step = zip(*(_errors(*pair) for pair in pairs), strict=True)
    return Verification(
        mode=session.config.mode,
        seeds=tuple(seeds),
        **_compared(_pictures(calls), _pictures(references)),
        max_abs_error=max_abs_error([c.last for c in calls], [r.last for r in references]),
        error_by_step=tuple(fmean(errors) for errors in by_step),
        steps_by_phase={
            kind: fmean(c.report.steps_by_phase[kind] for c in calls)
            for kind in calls[0].report.steps_by_phase
        },
        seconds=median(c.seconds for c in calls),
        one_device_seconds=median(r.seconds for r in references),
    )


@dataclass
class _Call:
    """One call of the pipeline.

    Attributes:
        report: what it did.
        latents: after each step, on the host.
        pictures: that it returned, whatever they are.
        seconds: it took.
    """

    report: RunReport
    latents: list[torch.Tensor]
    pictures: Any
    seconds: float

    @property
    def last(self) -> torch.Tensor:
        return self.latents[-1]


@dataclass
class _Watch:
    latents: list[torch.Tensor] = field(default_factory=list)

    def __call__(self, pipe: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
        self.note(values["latents"])
        return {}

    def note(self, latents: torch.Tensor) -> None:
        self.latents.append(latents.detach().to("cpu", copy=True))


def _make(pipe: Any, session: Session, prompt: Any, seed: int, call: Mapping[str, Any]) -> _Call:
    watch, generator = _Watch(), torch.Generator("cpu").manual_seed(seed)
    given: dict[str, Any] = {**call, "generator": generator}
    if given.get("output_type") != "latent" and takes(pipe, "output_type"):
        given["output_type"] = "np"  # any other would round the pictures before they are compared
    if prompt:
        given["prompt"] = prompt
    watched = nullcontext()
    if takes(pipe, _CALLBACK):
        given[_CALLBACK] = watch
    else:
        watched = sampler.watched(pipe.scheduler, after=watch.note)
    if (names := outputs(pipe)) is not None:
        given["output"] = names
    begin = time.perf_counter()
    with watched:
        out = pipe(**given)
    seconds = time.perf_counter() - begin
    if not watch.latents:
        raise UnsupportedPipelineError(
            f"the scheduler of this {type(pipe).__name__} was not seen to make a step, so its "
            "latents cannot be compared step by step; compare its pictures yourself."
        )
    assert session.report is not None
    return _Call(session.report, watch.latents, _of(out, names), seconds)


def _of(out: Any, names: Sequence[str] | None) -> Any:
    """The pictures in what a pipeline returned; by name, the first arrays of one of blocks."""
    if names is None:
        return out[0]
    return next((value for value in out.values() if isinstance(value, np.ndarray)), None)


def _errors(made: _Call, reference: _Call) -> list[float]:
    pairs = zip(made.latents, reference.latents, strict=True)
    return [relative_error(*pair) for pair in pairs]


def _compared(pictures: Pictures | None, wanted: Pictures | None) -> dict[str, float | None]:
    """The figures of pictures; the two of perception are of RGB pictures, not of clips."""
    if pictures is None or wanted is None:
        return {"psnr_db": None, "ssim": None, "lpips": None}
    is_rgb = pictures.ndim == 4 and pictures.shape[-1] == 3
    return {
        "psnr_db": psnr_db(pictures, wanted),
        "ssim": ssim(pictures, wanted) if is_rgb else None,
        "lpips": lpips(pictures, wanted) if is_rgb else None,
    }


def _pictures(calls: Sequence[_Call]) -> Pictures | None:
    """All pictures, (count, height, width, channels) in [0, 1]; None if they are no arrays."""
    if not all(isinstance(c.pictures, np.ndarray) for c in calls):
        return None
    return np.concatenate([c.pictures for c in calls])
