"""One call signature of a pipeline with the programs that serve it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from hybridiff_compile.capture.branches import Branches
from hybridiff_compile.capture.call import DenoiserCall, Rows, Signature
from hybridiff_compile.capture.prediction import Form
from hybridiff_compile.capture.trace import Captured, capture, capture_step
from hybridiff_compile.config import Config
from hybridiff_compile.debug import Dump
from hybridiff_compile.ir import Phase, StepProgram
from hybridiff_compile.passes import build_programs
from hybridiff_compile.runtime.fleet import new_key

#: Held while a denoiser is traced or compiled: neither torch.export nor Inductor may be at work in
#: two threads of a process at once.
one_compiler = threading.RLock()


@dataclass(frozen=True)
class Entry:
    """What serves the calls of one signature.

    Attributes:
        key: by which the ranks know it.
        rows: where the rows of each argument are, or none; see `Captured`.
        form: of the answer that the pipeline expects, to each call.
        programs: by phase.
        calls: of a step, each of whose answers has so many rows; () for one call.
        is_taken: each part of the batch has programs of its own; see `Captured`.
        not_exported: why each rank calls the denoiser as it is; "" if it has a graph of it.
    """

    key: int
    rows: Rows
    form: Form
    programs: dict[Phase, StepProgram]
    calls: tuple[int, ...] = ()
    is_taken: bool = False
    not_exported: str = ""

    def parts(self, step: Branches) -> Branches:
        """What the programs compute of a step: its calls, or the parts of its one batch."""
        return step if self.calls else Branches.of_batch(step.calls[0], self.rows)


def capture_entry(
    denoiser: nn.Module,
    call: DenoiserCall,
    answer: Any,
    config: Config,
    dump: Path | None,
) -> Entry:
    """Trace a denoiser from a pipeline's call and rewrite it into the programs of a mode.

    Args:
        denoiser: with its own forward in place.
        call: of a batch that can be halved.
        answer: what the denoiser returned to it.
        config: its mode, and how the programs will be lowered.
        dump: folder for the programs before and after each pass.

    Raises:
        CaptureError: it cannot be traced.
    """
    captured = capture(denoiser, call, answer, together=config.mode == "asyncdiff")
    # What these modes make of the branches is made of two of one call, that are alike.
    is_alike = call.parts == 2 and not (captured.is_taken or captured.not_exported)
    mode = config.mode if is_alike else "exact"
    return _entry(captured, mode, config, dump)


def capture_step_entry(
    denoiser: nn.Module, step: Branches, answers: Sequence[Any], config: Config, dump: Path | None
) -> Entry:
    """The same of all calls of a step, and the denoiser's answers to them; its phase is serial.

    Raises:
        CaptureError: it cannot be traced.
    """
    captured = capture_step(denoiser, step, answers)
    entry = _entry(captured, "exact", config, dump)
    return replace(entry, calls=tuple(len(captured.form.pack(answer)) for answer in answers))


def _entry(captured: Captured, mode: str, config: Config, dump: Path | None) -> Entry:
    observers = (Dump(dump),) if dump else ()
    # Compiled by stages, the ranks share the work even if no phase needs the cut.
    staged = config.lowering.backend == "inductor" and config.lowering.scope == "stage"
    staged = staged and not captured.not_exported
    programs = build_programs(captured.program, mode, observers, staged=staged)
    return Entry(
        new_key(),
        captured.rows,
        captured.form,
        programs,
        is_taken=captured.is_taken,
        not_exported=captured.not_exported,
    )


def not_packaged(call: DenoiserCall, known: Sequence[Signature]) -> str:
    """Say in which arguments a call differs from the nearest one that a package holds."""

    def shown(leaf: Any, other: Any) -> str:
        if not isinstance(leaf, tuple):
            return leaf
        shape, stride, dtype, device = leaf
        text = f"{dtype} {'x'.join(map(str, shape))}"
        alike = isinstance(other, tuple) and (other[0], other[2]) == (shape, dtype)
        return f"{text} of strides {stride} on {device}" if alike else text

    names, leaves, _ = call.signature()

    def differing(held: Signature) -> list[str]:
        other = dict(zip(held[0], held[1], strict=True))
        found = [
            f"{name} is {shown(leaf, other[name])}, not {shown(other[name], leaf)}"
            if name in other
            else f"has {name}"
            for name, leaf in zip(names, leaves, strict=True)
            if other.get(name) != leaf
        ]
        found += [f"lacks {name}" for name in other if name not in names]
        return found or ["its arguments are nested in another way"]

    nearest = min(map(differing, known), key=len)
    return (
        f"the package holds no programs for this call ({'; '.join(nearest)}); make the call as it "
        "was exported, or export a model that was compile()d for this one too."
    )
