"""`plan`: know before you buy."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

from hybridiff_compile.api import find_denoiser
from hybridiff_compile.bench import figures as figure_files
from hybridiff_compile.bench import models
from hybridiff_compile.config import PAPER_STEPS
from hybridiff_compile.errors import ConfigError
from hybridiff_compile.lower.device import device_of
from hybridiff_compile.planning import (
    alone,
    architectures,
    devices,
    link_probe,
    runs,
)
from hybridiff_compile.planning.architectures import Architecture
from hybridiff_compile.planning.predict import of_subject
from hybridiff_compile.planning.report import Plan
from hybridiff_compile.planning.subject import family, first_call, of_architecture, of_call
from hybridiff_compile.runtime import memory

#: Fewer do not hold a serial step, a pipelined one and another serial one.
LEAST_STEPS = 3


def plan(
    pipe: Any,
    gpus: int = 2,
    *,
    device: str = "rtx3090",
    link: str = "pcie3",
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    images: int = 1,
    num_inference_steps: int | None = None,
    k: int | None = None,
    psnr_db: float = 40.0,
    figures: str | Path | None = None,
    **call: Any,
) -> Plan:
    """Predict what two devices make of a denoiser; no weights are needed, and nothing is run.

    Args:
        pipe: name of an architecture ("sdxl", "sd3-medium", ...; `planning.architectures.NAMES`) or
            of an embedded pipeline, a denoiser's config as diffusers writes it (mapping, or path of
            the file or its folder), or a pipeline.
        gpus: 2.
        device: a name of `planning.devices`, by its data sheet, or "here": each rank's programs are
            run alone on the pipeline's device, one is enough, and that is projected.
        link: a name of `planning.devices`; beside device="here" also "here", which measures the one
            to the next device.
        height, width, frames: of what is made, pixels; None is the pipeline's default.
        images: pictures for each prompt, the branch batch B.
        num_inference_steps: of a run, 3 or more; None is 50.
        k: pipelined steps of the paper's mode; None is the paper's, scaled.
        psnr_db: how close to one device the recommended run has to be, as phases were measured.
        figures: file of `hybridiff sweep --json` to read that from; None takes what was measured on
            the embedded pipelines.
        call: further keywords of a pipeline's call.

    Raises:
        ConfigError: something of this is not known, or cannot be.
        UnsupportedPipelineError: the pipeline cannot be planned for.
        CaptureError: the denoiser cannot be traced.
        WorkerError: the process that helps to measure the link failed.
    """
    steps = PAPER_STEPS if num_inference_steps is None else num_inference_steps
    size = {"height": height, "width": width, "frames": frames}
    _check(gpus, images, steps, size, psnr_db, figures)
    name = pipe if isinstance(pipe, str) else type(pipe).__name__
    named = device != devices.HERE
    on, over = (devices.device(device), devices.link(link)) if named else (None, None)
    if figures is not None:
        figure_files.read(Path(figures))
    if isinstance(pipe, str) and pipe in models.NAMES:
        call = {**models.call_settings(pipe), **call}
        pipe = models.load(pipe)
    with memory.lightly_collected():
        if isinstance(pipe, str | Mapping | Path):
            found = _architecture(pipe, size, call)
            if on is None or over is None:
                raise ConfigError(
                    "device='here' runs the denoiser, and an architecture has no weights; pass a "
                    f"pipeline, or choose one of {', '.join(devices.DEVICES)}."
                )
            runs.phases("paper", family(str(found.config["_class_name"])), steps, k)
            subject = of_architecture(found, images, steps)
            return Plan.of(of_subject(subject, on, over, k=k, psnr_db=psnr_db, figures=figures))
        denoiser, constants = find_denoiser(pipe)
        runs.phases("paper", constants, steps, k)
        seen = first_call(pipe, _keywords(pipe, size, images, call))
        subject = of_call(pipe, seen, steps, name)
        if on is None or over is None:
            over = link_probe.between(device_of(denoiser), link)
            parts, batched = alone.eager(denoiser, seen, subject.captured)
            on = parts.times(batched, over, devices.OWN, rounds=5)
        return Plan.of(of_subject(subject, on, over, k=k, psnr_db=psnr_db, figures=figures))


def _check(
    gpus: int,
    images: int,
    steps: int,
    size: Mapping[str, int | None],
    psnr_db: float,
    figures: str | Path | None,
) -> None:
    if not _is_whole(gpus) or gpus != 2:
        raise ConfigError(f"gpus={gpus!r}: the passes make programs for 2 devices; plan for 2.")
    least = {"images": (images, 1), "num_inference_steps": (steps, LEAST_STEPS)}
    least |= {name: (value, 1) for name, value in size.items() if value is not None}
    for name, (value, fewest) in least.items():
        if not _is_whole(value) or value < fewest:
            why = ": the paper's mode has serial steps before and after" if fewest > 1 else ""
            raise ConfigError(f"{name}={value!r} must be a whole number, at least {fewest}{why}.")
    number = isinstance(psnr_db, int | float) and not isinstance(psnr_db, bool)
    if not number or not 0 < psnr_db < float("inf"):
        raise ConfigError(f"psnr_db={psnr_db!r} must be a number above 0, in dB.")
    if not isinstance(figures, str | Path | None):
        raise ConfigError(f"figures={figures!r} is no path; name a file that sweep --json wrote.")


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _architecture(
    of: str | Mapping[str, Any] | Path, size: Mapping[str, int | None], call: Mapping[str, Any]
) -> Architecture:
    if call:
        raise ConfigError(
            f"{', '.join(call)}: a plan without weights takes no such keyword; pass a pipeline for "
            "keywords of its call."
        )
    if isinstance(of, str) and of in architectures.NAMES:
        return architectures.named(of, **size)
    if isinstance(of, str):
        if not of or not Path(of).exists():
            known = ", ".join((*architectures.NAMES, *models.NAMES))
            raise ConfigError(
                f"{of!r} is neither a file nor a folder nor a model; choose one of {known}."
            )
        of = Path(of)
    return architectures.of_config(of, **size)


def _keywords(
    pipe: Any, size: Mapping[str, int | None], images: int, call: Mapping[str, Any]
) -> dict[str, Any]:
    """Of a pipeline's call; those of video have names of their own."""
    takes = inspect.signature(type(pipe).__call__).parameters
    names = {"height": "height", "width": "width", "frames": "num_frames"}
    counts = ("num_images_per_prompt", "num_videos_per_prompt")
    twice = [name for name in counts if name in call and images != 1]
    if twice:
        raise ConfigError(f"images={images} and {twice[0]}={call[twice[0]]}: give one of them.")
    given = {name: images for name in counts if name in takes} | dict(call)
    given |= {names[key]: value for key, value in size.items() if value is not None}
    unknown = [key for key in given if key not in takes]
    if unknown:
        raise ConfigError(f"{', '.join(unknown)}: {type(pipe).__name__} takes no such keyword.")
    return given
