"""Looking at passes at work: what each one changed, as files."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hybridiff_compile.arguments import check_path
from hybridiff_compile.errors import ConfigError
from hybridiff_compile.ir import StepProgram


def check_folder(dump: Any) -> Path | None:
    """Make the folder of `optimize(dump=...)`, so that a bad one is refused before any work.

    Raises:
        ConfigError: it is no path, or no folder that can be written to.
    """
    if dump is None:
        return None
    folder = check_path("dump", dump)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or e
        raise ConfigError(
            f"dump={str(dump)!r} is no folder that can be written to ({reason}); pass another."
        ) from e
    return folder


def call_name(count: int, sample: torch.Tensor) -> str:
    """Folder name for the programs of one captured call, such as `call2-2x4x32x32`.

    Args:
        count: of the captures so far, this one included: calls may differ in more than their shape.
        sample: the noisy picture of the batched call.
    """
    return f"call{count}-{'x'.join(str(size) for size in sample.shape)}"


@dataclass(frozen=True)
class Dump:
    """An observer of the pass runner that writes each program before and after a pass.

    Files are named `<phase>-<level after>-<pass>.before.txt` and `.after.txt`, so that a directory
    listing is in the order of the passes; the second file begins with what changed.
    """

    folder: Path

    def __call__(self, before: StepProgram, step: Any, after: StepProgram, seconds: float) -> None:
        """Write the two files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = f"{after.phase.name.lower()}-{int(after.level)}-{step.name}"
        (self.folder / f"{stem}.before.txt").write_text(f"{before}\n")
        head = f"# {step.name}: {difference(before, after)}, {seconds:.3f} s\n"
        (self.folder / f"{stem}.after.txt").write_text(f"{head}{after}\n")


def difference(before: StepProgram, after: StepProgram) -> str:
    """Number of nodes before and after, and what came and went: `14 -> 18 (+4 send.default)`."""
    counts = [
        Counter(
            n.op if n.op in ("placeholder", "output") else getattr(n.target, "__name__", n.target)
            for module in program.graphs
            for n in module.graph.nodes
        )
        for program in (before, after)
    ]
    names = sorted(set(counts[0]) | set(counts[1]), key=str)
    deltas = [(counts[1][name] - counts[0][name], name) for name in names]
    changed = ", ".join(f"{delta:+d} {name}" for delta, name in deltas if delta)
    return f"{counts[0].total()} -> {counts[1].total()} nodes ({changed or 'same nodes'})"
