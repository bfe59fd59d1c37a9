"""`plan`: know before you buy."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, TypeGuard

from hybridiff_compile.api import find_denoiser
from hybridiff_compile.arguments import check_path, check_positive
from hybridiff_compile.bench import models
from hybridiff_compile.config import PAPER_STEPS, SwitchSettings
from hybridiff_compile.errors import ConfigError
from hybridiff_compile.lower.device import device_of
from hybridiff_compile.planning import alone, architectures, devices, fidelity, link_probe, runs
from hybridiff_compile.planning.architectures import Architecture
from hybridiff_compile.planning.predict import of_subject
from hybridiff_compile.planning.report import Plan
from hybridiff_compile.planning.subject import first_call, of_architecture, of_call
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
    tell: Callable[[str], None] = lambda what: None,
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
        tell: told what begins, once all that was asked for has been checked.
        call: further keywords of a pipeline's call.

    Raises:
        ConfigError: something of this is not known, or cannot be.
        UnsupportedPipelineError: the pipeline cannot be planned for.
        CaptureError: the denoiser cannot be traced.
        WorkerError: the process that helps to measure the link failed.
    """
    steps = PAPER_STEPS if num_inference_steps is None else num_inference_steps
    size = {"height": height, "width": width, "frames": frames}
    _check(steps, images, size)
    if not _is_whole(gpus) or gpus != 2:
        raise ConfigError(f"gpus={gpus!r}: the passes make programs for 2 devices; plan for 2.")
    check_positive("psnr_db", psnr_db)
    if figures is not None:
        check_path("figures", figures)
    is_here = device == devices.HERE
    on: Any = None if is_here else devices.device(device)
    over: Any = None if is_here else devices.link(link)
    name = pipe if isinstance(pipe, str) else type(pipe).__name__
    if isinstance(pipe, str) and pipe in models.NAMES:
        call = {**models.call_settings(pipe), **call}
        pipe = models.load(pipe)
    with memory.lightly_collected():
        if isinstance(pipe, str | Mapping | Path):
            found = _architecture(pipe, size, call)
            if is_here:
                raise ConfigError(
                    "device='here' runs the denoiser, and an architecture has no weights; pass a "
                    f"pipeline, or choose one of {', '.join(devices.DEVICES)}."
                )
            _check_run(found.name, found.family, steps, k, figures)
            tell(f"tracing {found.name}")
            subject = of_architecture(found, images, steps)
        else:
            denoiser, family = find_denoiser(pipe)
            _check_run(name, family, steps, k, figures)
            seen = first_call(pipe, _keywords(pipe, size, images, call))
            over = link_probe.between(device_of(denoiser), link) if is_here else over
            tell(f"tracing {name}")
            subject = of_call(pipe, seen, steps, name)
            if is_here:
                tell(f"running each rank of {name} alone")
                parts, batched = alone.eager(denoiser, seen, subject.captured)
                on = parts.times(parts.samples(batched, rounds=5), over, devices.OWN)
        tell(f"cutting {subject.name} and predicting")
        return of_subject(subject, on, over, k=k, psnr_db=psnr_db, figures=figures)


def _check(steps: object, images: object, size: Mapping[str, object]) -> None:
    least = {"num_inference_steps": (steps, LEAST_STEPS), "images": (images, 1)}
    least |= {name: (value, 1) for name, value in size.items() if value is not None}
    for name, (value, fewest) in least.items():
        if not _is_whole(value) or value < fewest:
            why = ": the paper's mode has serial steps before and after" if fewest > 1 else ""
            raise ConfigError(f"{name}={value!r} must be a whole number, at least {fewest}{why}.")


def _check_run(
    name: str, family: SwitchSettings, steps: int, k: int | None, figures: str | Path | None
) -> None:
    """Raise ConfigError, before the work, for what no run can be or what no figures tell."""
    runs.phases("paper", family, steps, k)
    if figures is not None:
        fidelity.errors(name, steps, runs.room(family, steps), (Path(figures),))


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _architecture(
    of: str | Mapping[str, Any] | Path, size: Mapping[str, Any], call: Mapping[str, Any]
) -> Architecture:
    if call:
        given = ", ".join(f"{name}={value!r}" for name, value in call.items())
        raise ConfigError(
            f"{given}: a plan without weights takes no such keyword; pass a pipeline for "
            "keywords of its call."
        )
    if isinstance(of, str) and of in architectures.NAMES:
        return architectures.named(of, **size)
    if isinstance(of, str) and (not of or not Path(of).exists()):
        known = ", ".join((*architectures.NAMES, *models.NAMES))
        raise ConfigError(
            f"{of!r} is neither a file nor a folder nor a model; choose one of {known}."
        )
    return architectures.of_config(Path(of) if isinstance(of, str) else of, **size)


def _keywords(
    pipe: Any, size: Mapping[str, int | None], images: int, call: dict[str, Any]
) -> dict[str, Any]:
    """Of a pipeline's call; those of video have names of their own."""
    takes = inspect.signature(type(pipe).__call__).parameters
    count = "num_videos_per_prompt" if "num_videos_per_prompt" in takes else "num_images_per_prompt"
    if images != 1 and count in call:
        raise ConfigError(f"images={images} and {count}={call[count]}: give one of them.")
    given = {"num_frames" if name == "frames" else name: value for name, value in size.items()}
    given |= {count: images} if images != 1 else {}
    given = call | {name: value for name, value in given.items() if value is not None}
    unknown = [f"{name}={value!r}" for name, value in given.items() if name not in takes]
    if unknown:
        raise ConfigError(f"{', '.join(unknown)}: {type(pipe).__name__} takes no such keyword.")
    return given
