"""How fast two ranks are against what two devices could give, on `sdxl-small`, and what they hold.

Run it on a quiet machine with `python examples/speed.py`, for about eight minutes on two cores.
Pictures are made in turn, and every ratio is one round's, so that a drifting machine slows both of
its sides; what is printed is the median over rounds. A CPU device is one thread.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from torch.utils import _pytree as pytree

import hybridiff_compile
from hybridiff_compile import Phase
from hybridiff_compile.bench import models

ROUNDS, STEPS = 6, 12
LONG_ROUNDS, LONG_STEPS = 3, 50
FORCED = {"mode": "paper", "tau1": 3, "k": 8}


def load(name: str, width: int | None = None) -> Any:
    """An embedded pipeline without its progress bar; its UNet's channels made `width` wide."""
    pipe: Any = models.load(name)
    if width is not None:
        levels = len(pipe.unet.config["block_out_channels"])
        shape = {**pipe.unet.config, "block_out_channels": (width,) * levels}
        pipe.register_modules(unet=type(pipe.unet).from_config(shape).eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def step_seconds(model: Any, name: str, steps: int = STEPS) -> list[float]:
    """Seconds from the end of one step of a picture to the end of the next."""
    ends = []

    def note(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        ends.append(time.perf_counter())
        return values

    model(
        "a red circle",
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        callback_on_step_end=note,
        **models.call_settings(name),
    )
    return [b - a for a, b in pairwise(ends)]


def one_branch(pipe: Any, denoiser: Any, name: str) -> Callable[[], Any]:
    """The denoiser's forward at branch batch B, on the inputs that the pipeline gives it."""
    own, seen = denoiser.forward, []

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append((args, kwargs))
        return own(*args, **kwargs)

    denoiser.forward = spy
    step_seconds(pipe, name)
    del denoiser.forward
    args, kwargs = pytree.tree_map(
        lambda x: x.chunk(2)[0] if isinstance(x, torch.Tensor) and x.dim() and len(x) == 2 else x,
        seen[0],
    )
    return lambda: own(*args, **kwargs)


def timed(run: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    with torch.no_grad():
        run()
    return time.perf_counter() - start


def megabytes(pid: int | str) -> float:
    """Proportional set size: shared pages count once between the processes that map them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def speed(console: Console) -> None:
    """Steps of one device, of exact and of the pipelined phase, interleaved."""
    name = "sdxl-small"
    plain = load(name)
    forward = one_branch(plain, plain.unet, name)
    with (
        hybridiff_compile.optimize(load(name), mode="exact") as exact,
        hybridiff_compile.optimize(load(name), **FORCED) as paper,
    ):
        for model in (exact, paper):
            step_seconds(model, name)
        rounds: list[dict[str, float]] = []
        for _ in range(ROUNDS):
            found = {
                "one device, a step of 2B": step_seconds(plain, name),
                "one device, a forward of B": [timed(forward) for _ in range(STEPS)],
                "exact, a step": step_seconds(exact, name),
            }
            phases = list(zip(step_seconds(paper, name), paper.report.steps[1:], strict=True))
            for phase, label in ((Phase.SERIAL, "serial"), (Phase.PIPELINED, "pipelined")):
                found[f"paper, a {label} step"] = [s for s, step in phases if step.phase is phase]
            rounds.append({label: median(seconds) for label, seconds in found.items()})

    def ratio(*labels: str) -> float:
        return median(r[labels[0]] / r[labels[1]] for r in rounds)

    one, branch, two, _, pipelined = rounds[0]
    for label in rounds[0]:
        console.print(f"{label:32} {median(r[label] for r in rounds) * 1000:8.1f} ms")
    of_bound = ratio(branch, two)  # (one / two) / (one / branch)
    console.print(f"bound T(2B)/T(B)                 {ratio(one, branch):8.3f}")
    console.print(
        f"exact speed-up                   {ratio(one, two):8.3f}  ({of_bound:.3f} of bound)"
    )
    console.print(f"pipelined / exact step           {ratio(pipelined, two):8.3f}")


def beyond(console: Console) -> None:
    """Whole runs of 50 steps: what guided pipelining and forecasting add to exact, interleaved."""
    name = "sdxl-small"
    modes: dict[str, dict[str, Any]] = {
        "exact": {"mode": "exact"},
        "guided, tau1 = 6, k = 40": {"mode": "guided", "tau1": 6, "k": 40},
        "forecast, the same, m = 4": {"mode": "forecast", "tau1": 6, "k": 40, "m": 4},
        "hybrid, as it is": {},
        "hybrid, fast": {"tolerance": "fast"},
    }
    with ExitStack() as stack:
        models_of = {
            label: stack.enter_context(hybridiff_compile.optimize(load(name), **how))
            for label, how in modes.items()
        }
        ratios: dict[str, list[float]] = {label: [] for label in modes}
        for model in models_of.values():
            step_seconds(model, name, LONG_STEPS)
        for _ in range(LONG_ROUNDS):
            taken = {
                label: sum(step_seconds(model, name, LONG_STEPS))
                for label, model in models_of.items()
            }
            for label, seconds in taken.items():
                ratios[label].append(taken["exact"] / seconds)
        for label, model in models_of.items():
            phases = model.report.steps_by_phase
            console.print(f"{label:27} {median(ratios[label]):6.3f} x exact  {phases}")


def own_python(console: Console) -> None:
    """What the driver does in a step beside the denoiser, in steps that rank 1 finished first."""
    name = "sdxl-small"
    with hybridiff_compile.optimize(load(name), mode="exact") as exact:
        exact.compile(prompt="", **models.call_settings(name))
        programs = exact.programs()[0]
        denoiser = programs[Phase.SERIAL].graphs[0].get_submodule("denoiser")
        inside: list[float] = []
        denoiser.register_forward_pre_hook(lambda *_: inside.append(-time.perf_counter()))
        denoiser.register_forward_hook(lambda *_: inside.append(time.perf_counter()))
        beside = []
        for _ in range(ROUNDS):
            inside.clear()
            step_seconds(exact, name)
            forwards = [a + b for a, b in zip(inside[::2], inside[1::2], strict=True)]
            taken = [step.seconds for step in exact.report.steps]
            beside += [t - f for t, f in zip(taken, forwards, strict=True)]
    # The quarter of the steps with the least waiting; the others wait for rank 1 as well.
    least = sorted(beside)[: len(beside) // 4]
    console.print(f"driver, beside its forward       {median(least) * 1000:8.2f} ms a step")


def memory(ranks: int, width: int | None) -> None:
    """Print the PSS of all ranks and the pipeline's weights, in MiB; for a fresh process."""
    name = "sdxl-small"
    pipe = load(name, width)
    modules = [m for m in pipe.components.values() if isinstance(m, torch.nn.Module)]
    weights = sum(p.nbytes for m in modules for p in m.parameters()) / 2**20
    if ranks == 1:
        step_seconds(pipe, name)
        print(megabytes("self"), weights)
        return
    model: Any
    with hybridiff_compile.optimize(pipe, mode="exact") as model:
        step_seconds(model, name)
        model._session.ranks.driver.traffic()  # rank 1 has trimmed after its first steps by then
        worker = model._session.ranks.driver.fleet._process.pid
        print(megabytes("self") + megabytes(worker), weights)


def bare_megabytes() -> float:
    """PSS of two processes, side by side, that have only imported what a driver imports."""
    code = "import hybridiff_compile.bench.models; from diffusers import StableDiffusionXLPipeline"
    command = [sys.executable, "-c", f"{code}; print(flush=True); input()"]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    bare: list[Any] = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in bare:
        process.stdout.readline()
    held = sum(megabytes(process.pid) for process in bare)
    for process in bare:
        process.communicate(b"\n")
    return held


def report_memory(console: Console) -> None:
    """What two ranks hold, beside bare processes and a twin with next to no weights."""
    bare = bare_megabytes()
    console.print(f"PSS of two bare processes         {bare:8.0f} MiB")
    for label, ranks, width in (
        ("one device", 1, None),
        ("two ranks", 2, None),
        ("two ranks, narrow twin", 2, 32),
    ):
        command = [sys.executable, __file__, "memory", str(ranks), str(width or "")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        held, weights = (float(x) for x in done.stdout.split())
        limit = f", bare + 1.1 x weights {bare + 1.1 * weights:.0f} MiB" if ranks == 2 else ""
        console.print(f"PSS of {label:25} {held:8.0f} MiB, weights {weights:.0f} MiB{limit}")


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["memory"]:
        memory(int(sys.argv[2]), int(sys.argv[3] or 0) or None)
        return
    console = Console(highlight=False)
    report_memory(console)
    own_python(console)
    speed(console)
    beyond(console)


if __name__ == "__main__":
    main()
