"""Each rank's programs alone on one device, for `gpu_check.py`; two are projected from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import gpu_denoisers
import torch

from hybridiff_compile.capture.branches import Branches
from hybridiff_compile.capture.call import DenoiserCall
from hybridiff_compile.capture.prediction import Form
from hybridiff_compile.capture.trace import capture
from hybridiff_compile.config import Lowering
from hybridiff_compile.ir import Phase
from hybridiff_compile.passes import build_programs
from hybridiff_compile.planning import clock, devices, runs
from hybridiff_compile.planning.alone import Alone
from hybridiff_compile.planning.runs import Times

STEPS, K = 50, 5
EAGER, REGIONAL = Lowering(), Lowering("inductor", "regional")


def rows(
    name: str, detail: str, device: torch.device, rounds: int, *, small: bool
) -> Iterator[dict[str, Any]]:
    """Measure a denoiser of `gpu_denoisers.NAMES`; a row as soon as it is there.

    Args:
        detail: "kernels": one device without the time of launches; "programs": each rank's.
    """
    dtype = torch.float32 if small else torch.bfloat16
    denoiser: Any = gpu_denoisers.build(name, device, dtype, small=small)
    call, batched = gpu_denoisers.call_of(name, denoiser, device, dtype)
    size = 8 * denoiser.config.sample_size
    what = {"command": "gpu-check ranks", "model": name, "dtype": str(dtype).split(".")[-1]}
    what |= {"height": size, "width": size, "batch": 1}
    with torch.no_grad():
        if detail == "kernels":
            yield _kernels(denoiser, call, batched, device, rounds, what)
        else:
            yield from _programs(denoiser, call, batched, device, rounds, what)


def _branch(denoiser: Any, call: DenoiserCall, index: int) -> Callable[[], Any]:
    positional, keyword = call.branch(index).arguments
    return lambda: denoiser(*positional.values(), **keyword)


def _kernels(
    denoiser: Any,
    call: DenoiserCall,
    batched: Callable[[], Any],
    device: torch.device,
    rounds: int,
    what: dict[str, Any],
) -> dict[str, Any]:
    """T(2B) and T(B) from CUDA graphs: launching a big denoiser's kernels can outlast them."""
    runs = (batched, _branch(denoiser, call, 1))
    both, one = (gpu_denoisers.graphed_ms(run, device, rounds) for run in runs)
    row = {**what, "mode": "one-device", "backend": "eager", "note": "from a CUDA graph"}
    return {**row, "step_ms": both, "branch_ms": one, "ratio": both / one}


def _programs(
    denoiser: Any,
    call: DenoiserCall,
    batched: Callable[[], Any],
    device: torch.device,
    rounds: int,
    what: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    def clocked(run: Callable[[], Any]) -> float:
        return gpu_denoisers.median_ms(run, device, rounds)

    branches = [_branch(denoiser, call, index) for index in range(2)]
    together, apart = clocked(batched), clocked(branches[1])
    eager = {**what, "backend": "eager", "mode": "one-device"}
    yield {**eager, "step_ms": together, "branch_ms": apart, "ratio": together / apart}
    answers = [run() for run in branches]
    form = Form.of(answers[0], "denoiser")
    expected = torch.cat([form.pack(answer) for answer in answers])
    begin = time.perf_counter()
    captured = capture(denoiser, call, batched())
    programs = build_programs(captured.program, "paper")
    captured_in = time.perf_counter() - begin
    values = Branches.of_batch(call, captured.rows).inputs()
    for how in (EAGER, REGIONAL):
        own = {**what, "backend": how.backend}
        own |= {} if how.backend == "eager" else {"scope": how.scope}
        begin = time.perf_counter()
        alone = Alone(programs, how, values, device)
        clock.synchronize(device)
        ready = time.perf_counter() - begin
        prediction = alone.step(0, Phase.SERIAL)["prediction"]
        if how.backend != "eager":  # the other side of the ratio is compiled by blocks as well
            gpu_denoisers.compile_blocks(denoiser)
        samples = alone.samples(batched, rounds)
        times = alone.times(samples, devices.link("pcie3"), devices.OWN)
        yield {
            **own,
            "mode": "paper",
            "branch_ms": [1e3 * t for t in times.branch],
            "stage_ms": [1e3 * t for t in times.stages],
            "cut_bytes": alone.cut_bytes,
            "prediction_bytes": alone.prediction_bytes,
            "capture_seconds": captured_in,
            "compile_seconds_cold": ready,
            "max_abs_error": float((prediction - expected).abs().max()),
            "largest": float(expected.abs().max()),
        }
        if how.backend != "eager":
            note = {"note": "blocks, by torch.compile"}
            yield {**own, **note, "mode": "one-device", "step_ms": 1e3 * times.both}
        for link in devices.LINKS.values():
            sent = (alone.cut_bytes, alone.prediction_bytes)
            for mode, step_ms in projected(times, link, *sent).items():
                row = {**own, "mode": mode, "link": link.name, "predicted_step_ms": step_ms}
                speedup = 1e3 * times.both / mean_step_ms(mode, step_ms)
                yield {**row, "predicted_speedup": speedup}


def projected(
    times: Times, link: devices.Link, cut: int, prediction: int
) -> dict[str, dict[str, float]]:
    """Milliseconds of a step on two devices, by mode and phase, from each rank's time alone."""
    over = replace(times, cut=link.seconds(cut), prediction=link.seconds(prediction))
    phases = (Phase.SERIAL, Phase.PIPELINED)
    exact, pipelined = (1e3 * runs.step_seconds("paper", phase, over) for phase in phases)
    return {"exact": {"serial": exact}, "paper": {"serial": exact, "pipelined": pipelined}}


def mean_step_ms(mode: str, step_ms: dict[str, float]) -> float:
    """A run's mean step: in paper mode, K of STEPS steps are pipelined."""
    if mode == "exact":
        return step_ms["serial"]
    return (K * step_ms["pipelined"] + (STEPS - K) * step_ms["serial"]) / STEPS
