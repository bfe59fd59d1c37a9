"""A plan in sentences: what the ceiling is, what holds it back, and what to ask for."""

from __future__ import annotations

from collections.abc import Iterator

from hybridiff_compile.ir import Phase
from hybridiff_compile.planning import devices, runs
from hybridiff_compile.planning.predict import Predicted
from hybridiff_compile.planning.runs import RunPlan


def of(plan: Predicted) -> Iterator[str]:
    """What the ceiling is, what holds it back, and what to ask for."""
    t, by_mode = plan.times, {run.mode: run for run in plan.runs}
    batching = t.both / max(t.branch)
    yield (
        f"Both branches take one device {batching:.2f} times a branch's own, which is "
        f"the most that running them side by side can gain; exact gains "
        f"{by_mode['exact'].speedup:.2f}."
    )
    paper = by_mode["paper"]
    most = runs.ceiling(t, paper.phases)
    yield (
        f"The paper's mode with {_pipelined(paper)} pipelined steps could gain "
        f"{most:.2f} if stages were even and the link free; {paper.speedup:.2f} is predicted. "
        f"{_link_share(plan)}"
    )
    if plan.reference is not None and plan.reference.needed < plan.reference.sent:
        yield (
            f"The reference code's split is no cut by depth: one rank has both ends. Of the "
            f"{plan.reference.sent / 1e6:.1f} MB that it sends a step, its ranks read "
            f"{plan.reference.needed / 1e6:.2f} MB of each other, two steps late."
        )
    yield (
        "The paper's mode begins at its latest step here, and hybrid extrapolates all that it may: "
        "both depend on the picture."
    )
    cut = plan.cuts[plan.chosen].crossing
    yield (
        f"The first pipelined step also sends the cut that fills the pipeline, {cut / 1e6:.2f} MB; "
        f"a step of asyncdiff sends both branches, {2 * (cut + plan.prediction) / 1e6:.2f} MB."
    )
    if plan.subject.batched:
        yield _advice(plan)
    if plan.device in devices.DEVICES:
        yield from _too_large(plan.memory, devices.device(plan.device))
    if not plan.subject.batched:
        yield (
            "This model's pipeline calls its denoiser twice a step, which optimize() runs on one "
            "rank so far; the figures are those of the ranks' programs."
        )
    yield (
        "Encoders, scheduler and VAE are not in these times. Device and link are data sheets, of "
        "which kernels are taken to reach fixed shares; hybridiff profile measures yours."
        if plan.device != "here"
        else "Encoders, scheduler and VAE are not in these times; the parts were measured here."
    )


def _too_large(memory: tuple[int, int, int], device: devices.Device) -> Iterator[str]:
    one, *ranks = memory
    held, has = max(ranks), f"{device.name} has {device.memory / 1e9:.0f} GB"
    if held > device.memory:
        yield (
            f"It does not fit: {held / 1e9:.1f} GB of weights and activations, and {has}. Both "
            "ranks hold all weights, as both run serial steps."
        )
    elif one > device.memory:
        yield f"One device cannot run it, two can: it holds {one / 1e9:.1f} GB, and {has}."


def _advice(plan: Predicted) -> str:
    best = plan.recommended
    settings = ", ".join(f"{name}={value!r}" for name, value in best.settings.items())
    within, errors = f"within {plan.psnr_db:g} dB of one device", plan.errors
    source = f"by the errors of phases in {errors.steps} steps of {errors.model}"
    if errors.steps is None:
        source = f"as no run of so few steps was measured on {errors.model}"
    if errors.model != plan.subject.name:
        source += ", not of this model"
    if best.speedup <= 1:
        return (
            f"Two devices do not pay {within} ({source}): the fastest, optimize(pipe, gpus=2, "
            f"{settings}), takes {1 / best.speedup:.2f} times as long as one."
        )
    return (
        f"Fastest {within} ({source}): optimize(pipe, gpus=2, {settings}), {best.speedup:.2f} "
        "times one device; see model.verify(prompt). mode='hybrid' finds such steps by itself."
    )


def _link_share(plan: Predicted) -> str:
    t = plan.times
    share = t.cut / (t.cut + t.stages[0])
    return f"The cut is {share:.1%} of stage0's way, over {plan.link}."


def _pipelined(run: RunPlan) -> int:
    return sum(phase is not Phase.SERIAL for phase in run.phases)
