"""Whole pictures on two ranks of one GPU or of two, for `gpu_check.py`: their bits, and compiling.

Two ranks on one card send through host memory and take turns on it, so that their times say
nothing about two cards; that their results are right says as much as on two.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from statistics import median
from typing import Any

import torch

import hybridiff_compile
from hybridiff_compile import quality
from hybridiff_compile.bench import measure, models
from hybridiff_compile.lower import compilations
from hybridiff_compile.planning import clock

PROMPTS = (
    "a red circle left of a blue square on a dark green background",
    "a blue square above a red circle on a dark green background",
)
#: How `optimize` is called for each mode; the first one is the reference for bits and dB.
MODES: dict[Any, dict[str, Any] | None] = {
    "one-device-apart": {"gpus": 1, "mode": "exact"},
    "one-device": None,
    "exact": {"gpus": 2, "mode": "exact"},
    "paper": {"gpus": 2, "mode": "paper"},
}
#: (scope, compile_mode) of each compiled row.
COMPILED = {
    f"{scope}{'+graphs' if mode else ''}": (scope, mode)
    for scope in ("stage", "regional")
    for mode in (None, "reduce-overhead")
}


def ranks(device: torch.device) -> tuple[str, str]:
    """The devices of two ranks: two cards where there are two."""
    if device.type == "cpu":
        return "cpu", "cpu"
    return "cuda:0", "cuda:1" if torch.cuda.device_count() > 1 else "cuda:0"


def links(device: torch.device) -> str:
    """What carries the tensors between these ranks."""
    if device.type == "cpu":
        return "gloo"
    first, second = ranks(device)
    return "host memory" if first == second else "NCCL"


def load(name: str, device: torch.device, dtype: torch.dtype) -> Any:
    """An embedded pipeline on the device."""
    pipe: Any = models.load(name).to(device, dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def rows(name: str, device: torch.device, dtype: torch.dtype, steps: int) -> Iterator[dict]:
    """Each mode against one device that runs the branches apart: largest error, and dB."""
    call = {**models.call_settings(name), "num_inference_steps": steps}
    reference: list[measure.Made] = []
    for mode, settings in MODES.items():
        pipe = load(name, device, dtype)
        scheduler, model = type(pipe.scheduler).__name__, None
        contender = measure.Contender(mode, scheduler, pipe)
        if settings is not None:
            if settings["gpus"] == 2:
                settings = {**settings, "devices": ranks(device)}
            model = hybridiff_compile.optimize(pipe, **settings)
            contender = measure.Contender(mode, scheduler, model, lambda m=model: m.report)
        measure.make(contender, PROMPTS[0], 0, **call)  # warm-up: a first call captures
        made = [measure.make(contender, p, seed, **call) for seed, p in enumerate(PROMPTS)]
        reference = reference or made
        yield {
            **_what(name, dtype, "pictures", call),
            "mode": mode,
            "scheduler": scheduler,
            "backend": "eager",
            "links": links(device) if mode in ("exact", "paper") else None,
            **_compared(made, reference),
        }
        if model is not None:
            model.restore()


def _compared(made: list[measure.Made], reference: list[measure.Made]) -> dict[str, Any]:
    error = quality.max_abs_error([m.latents for m in made], [m.latents for m in reference])
    pairs = list(zip(made, reference, strict=True))
    last = made[-1].report
    return {
        "seconds": median(m.seconds for m in made),
        "runs": len(made),
        "step_ms": 1e3 * median(s for m in made for s in m.step_seconds),
        "max_abs_error": error,
        "psnr_db": sum(quality.psnr_db(m.pictures, r.pictures) for m, r in pairs) / len(pairs),
        "steps_by_phase": last and last.steps_by_phase,
        "bytes_sent": last and last.bytes_sent,
    }


def _what(name: str, dtype: torch.dtype, section: str, call: dict[str, Any]) -> dict[str, Any]:
    shape = {"steps": call["num_inference_steps"], "height": call["height"]}
    shape |= {"width": call["width"], "guidance_scale": call["guidance_scale"], "batch": 1}
    kind = str(dtype).removeprefix("torch.")
    return {"command": f"gpu-check {section}", "model": name, "dtype": kind, **shape}


def compiled(
    name: str, device: torch.device, dtype: torch.dtype, steps: int, kind: str
) -> Iterator[dict[str, Any]]:
    """One way of COMPILED: seconds until both ranks are ready, step, and error against eager.

    The caller gives it a process and an empty cache folder of its own.
    """
    scope, mode = COMPILED[kind]
    call = {**models.call_settings(name), "num_inference_steps": steps}
    pipe, two = load(name, device, dtype), ranks(device)
    with hybridiff_compile.optimize(pipe, mode="exact", devices=two) as model:
        _, _, expected = _picture(model, call, device)
        eager_ms, _, _ = _picture(model, call, device)
    how: dict[str, Any] = {"backend": "inductor", "scope": scope, "compile_mode": mode}
    how["mode"] = "exact"
    with hybridiff_compile.optimize(pipe, devices=two, **how) as model:
        begin = time.perf_counter()
        model.compile(progress=False, **call)
        cold = time.perf_counter() - begin
        ready = compilations()
        _picture(model, call, device)  # CUDA graphs are recorded by their second call
        step_ms, picture, latents = _picture(model, call, device)
        yield {
            **_what(name, dtype, "compile", call),
            "mode": "exact",
            "backend": "inductor",
            "scope": scope,
            "compile_mode": mode,
            "links": links(device),
            "compile_seconds_cold": cold,
            "seconds": picture,
            "step_ms": step_ms,
            "eager_step_ms": eager_ms,
            "max_abs_error": float((latents.double() - expected.double()).abs().max()),
            "largest": float(expected.abs().max()),
            "recompiles": compilations() - ready,
        }


def _picture(
    model: Any, call: dict[str, Any], device: torch.device
) -> tuple[float, float, torch.Tensor]:
    """Median milliseconds of a step, seconds of the call, and the final latents."""
    ends: list[float] = []

    def note(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        clock.synchronize(device)
        ends.append(time.perf_counter())
        return values

    begin = time.perf_counter()
    out = model(
        PROMPTS[0],
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        callback_on_step_end=note,
        **call,
    )
    clock.synchronize(device)
    step = median(b - a for a, b in pairwise(ends))
    return 1e3 * step, time.perf_counter() - begin, out.images.clone()
