"""`plan`: know before you buy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybridiff_compile.api import find_denoiser
from hybridiff_compile.bench import models
from hybridiff_compile.config import PAPER_STEPS
from hybridiff_compile.errors import ConfigError
from hybridiff_compile.lower.device import device_of
from hybridiff_compile.planning import alone, architectures, devices, link_probe
from hybridiff_compile.planning.architectures import Architecture
from hybridiff_compile.planning.predict import Plan, of_subject
from hybridiff_compile.planning.subject import first_call, of_architecture, of_call
from hybridiff_compile.runtime import memory


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
        num_inference_steps: of a run; None is 50.
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
    _check(gpus, images, num_inference_steps, psnr_db)
    size = {"height": height, "width": width, "frames": frames}
    steps, options = num_inference_steps or PAPER_STEPS, {"k": k, "psnr_db": psnr_db}
    named = device != devices.HERE
    on, over = (devices.device(device), devices.link(link)) if named else (None, None)
    name = pipe if isinstance(pipe, str) else type(pipe).__name__
    if isinstance(pipe, str) and pipe in models.NAMES:
        call = {**models.call_settings(pipe), **call}
        pipe = models.load(pipe)
    with memory.lightly_collected():
        if isinstance(pipe, str | Mapping | Path):
            found = _architecture(pipe, size)
            if on is None or over is None:
                raise ConfigError(
                    "device='here' runs the denoiser, and an architecture has no weights; pass a "
                    f"pipeline, or choose one of {', '.join(devices.DEVICES)}."
                )
            subject = of_architecture(found, images, steps)
            return of_subject(subject, on, over, figures=figures, **options)
        given = {key: value for key, value in size.items() if value is not None}
        seen = first_call(pipe, {**call, "num_images_per_prompt": images, **given})
        subject = of_call(pipe, seen, steps, name)
        if on is None or over is None:
            denoiser, _ = find_denoiser(pipe)
            over = link_probe.between(device_of(denoiser), link)
            on = alone.times(denoiser, seen, subject.captured, over)
        return of_subject(subject, on, over, figures=figures, **options)


def _check(gpus: int, images: int, steps: int | None, psnr_db: float) -> None:
    if gpus != 2:
        raise ConfigError(f"gpus={gpus}: the passes make programs for 2 devices; plan for 2.")
    for name, value in (("images", images), ("num_inference_steps", steps)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value} must be at least 1.")
    if not 0 < psnr_db < float("inf"):
        raise ConfigError(f"psnr_db={psnr_db} must be a number above 0, in dB.")


def _architecture(
    of: str | Mapping[str, Any] | Path, size: Mapping[str, int | None]
) -> Architecture:
    if isinstance(of, str):
        return architectures.named(of, **size)
    return architectures.of_config(of, **size)
