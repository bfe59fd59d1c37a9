"""Measure a pipeline and the machine: what two ranks would make of it, and what they do make."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from hybridiff_compile.api import find_denoiser, optimize
from hybridiff_compile.arguments import with_prompt
from hybridiff_compile.bench.command import check_least
from hybridiff_compile.ir import Phase
from hybridiff_compile.lower.device import device_of
from hybridiff_compile.planning import alone, clock, devices, link_probe
from hybridiff_compile.planning.runs import Times
from hybridiff_compile.planning.subject import Subject, first_call, of_call
from hybridiff_compile.runtime.driver import one_thread
from hybridiff_compile.runtime.report import RunReport

#: Fewer steps do not hold a serial, a pipelined and a last pipelined one, each after one alike.
LEAST_STEPS = 9


@dataclass(frozen=True)
class Profile:
    """What was measured. Printed by `profile_report`.

    Attributes:
        subject: the pipeline's denoiser, and the steps of a picture.
        times: of the parts of a step, each measured alone, and of the link.
        seconds: of a picture on one device.
        denoiser_seconds: of the denoiser's calls in it.
        link: as measured or stated.
        phases: of the paper's mode, in thirds: serial, pipelined, serial.
        measured: seconds of a step in each of them on two ranks; empty without a second device.
    """

    subject: Subject
    times: Times
    seconds: float
    denoiser_seconds: float
    link: devices.Link
    phases: tuple[Phase, ...]
    measured: Mapping[Phase, float]


def profile(
    pipe: Any,
    *,
    link: str = devices.HERE,
    num_inference_steps: int = 18,
    rounds: int = 3,
    name: str | None = None,
    tell: Callable[[str], None] = lambda what: None,
    **call: Any,
) -> Profile:
    """Measure a pipeline here; on the CPU a device is one thread.

    Args:
        pipe: a diffusers pipeline, on the device that is measured.
        link: "here" measures the one between two devices of this machine; with a name of
            `planning.devices` one device is enough, and nothing is run on two.
        num_inference_steps: of a picture, 9 or more.
        rounds: pictures and steps of which the median counts.
        name: of the model, for tables.
        tell: told what begins.
        call: further keywords of the pipeline's call.

    Raises:
        ConfigError: a setting cannot be, or there is no second device whose link to measure.
        UnsupportedPipelineError, CaptureError: the pipeline cannot run on two ranks.
        WorkerError: a process that was to help has failed.
    """
    check(link, num_inference_steps, rounds)
    call = {"num_inference_steps": num_inference_steps, **call}
    denoiser, _ = find_denoiser(pipe)
    device = device_of(denoiser)
    tell("measuring the link")
    seen = first_call(pipe, call)
    over = link_probe.between(device, link)
    tell(f"{over.rate / 1e6:.0f} MB/s on the link; tracing the denoiser")
    subject = of_call(pipe, seen, num_inference_steps, name or type(pipe).__name__)
    with one_thread(device):
        seconds, denoiser_seconds = _one_device(pipe, device, rounds, call, tell)
    tell(f"{seconds:.2f} s on one device; each rank alone")
    parts, batched = alone.eager(denoiser, seen, subject.captured)
    samples = parts.samples(batched, rounds=2)
    third = num_inference_steps // 3
    two = optimize(pipe, mode="paper", tau1=third, k=third) if link == devices.HERE else None
    reports: list[RunReport] = []
    with two or nullcontext():
        if two is not None:
            tell("two ranks, warming up")
            make(pipe, call)
        # In turn, so that a machine which slows down slows prediction and measurement alike.
        for i in range(rounds):
            if two is not None:
                tell(f"two ranks, picture {i + 1} of {rounds}")
                make(pipe, call)
                reports.append(two.report)
            for taken, more in zip(samples, parts.samples(batched, 2, warm_up=1), strict=True):
                taken += more
    times = parts.times(samples, over, _own(reports) if reports else devices.OWN)
    pipelined = (*[Phase.PIPELINED] * (third - 1), Phase.DRAINED)
    after = num_inference_steps - 2 * third
    return Profile(
        subject=subject,
        times=times,
        seconds=seconds,
        denoiser_seconds=denoiser_seconds,
        link=over,
        phases=(*[Phase.SERIAL] * third, *pipelined, *[Phase.SERIAL] * after),
        measured=_by_phase(reports),
    )


def check(link: str, steps: int, rounds: int) -> None:
    """Raise ConfigError for what `profile` does not take; arguments as there."""
    check_least("steps", steps, LEAST_STEPS)
    check_least("rounds", rounds, 1)
    if link != devices.HERE:
        devices.link(link)


def _one_device(
    pipe: Any,
    device: torch.device,
    rounds: int,
    call: Mapping[str, Any],
    tell: Callable[[str], None],
) -> tuple[float, float]:
    """Seconds of the median of some pictures after one that warms up, and of its denoiser calls."""
    denoiser, _ = find_denoiser(pipe)
    marks: list[float] = []

    def mark(*_: Any) -> None:
        clock.synchronize(device)
        marks.append(time.perf_counter())

    made: list[tuple[float, float]] = []
    with denoiser.register_forward_pre_hook(mark), denoiser.register_forward_hook(mark):
        for i in range(1 + rounds):
            tell(f"one device, picture {i} of {rounds}" if i else "one device, warming up")
            marks.clear()
            begin = time.perf_counter()
            make(pipe, call)
            clock.synchronize(device)
            made.append((time.perf_counter() - begin, sum(marks[1::2]) - sum(marks[::2])))
    return sorted(made[1:])[rounds // 2]


def make(pipe: Any, call: Mapping[str, Any]) -> None:
    """Make a picture that nobody sees; the random numbers of later ones stay theirs."""
    # An empty one makes both branches the same, which tells nobody their order.
    with torch.random.fork_rng():
        pipe(**with_prompt(pipe, call, "a photo"))


def _by_phase(reports: Sequence[RunReport]) -> dict[Phase, float]:
    """Median seconds of a step in each phase, by the driver's clock."""
    found: dict[Phase, list[float]] = defaultdict(list)
    for step in (s for report in reports for s in report.steps):
        found[step.phase].append(step.seconds)
    return {phase: median(seconds) for phase, seconds in found.items()}


def _own(reports: Sequence[RunReport]) -> float:
    """What the driver adds to a serial step: before and after its program, and rank 1's delay."""
    found = []
    for report in reports:
        for step, own, peer in zip(report.steps, *report.rank_steps, strict=True):
            if step.phase is Phase.SERIAL:
                delay = max(0.0, peer.begin - own.begin)
                found.append(step.seconds - (own.end - own.begin) + delay)
    return max(0.0, median(found))
