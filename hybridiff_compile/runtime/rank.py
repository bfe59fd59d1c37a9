"""One rank at work: its variants by phase, and the values it keeps between steps."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import torch

from hybridiff_compile import ops
from hybridiff_compile.ir import Phase, Variant
from hybridiff_compile.runtime.report import RankStep

#: The index of a step that is of no run: programs are tried.
TRIAL = -1


class Rank:
    """Runs one step at a time, in the driver and in the workers alike.

    A captured call signature has a key; inputs and state of different keys are kept apart.

    Args:
        device: where it computes; None is the CPU.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device
        self._variants: dict[tuple[int, Phase], Variant] = {}
        self._values: dict[int, dict[str, torch.Tensor]] = {}
        self._steps: list[RankStep] = []

    def load(self, key: int, variants: Iterable[Variant]) -> None:
        """Take the variants of a captured signature."""
        loaded = {(key, v.phase): v for v in variants}
        self._variants.update(loaded)
        # A guided pipeline starts to fill with no features yet: what it makes of zeros is not used.
        self._values[key] = {
            name: torch.zeros_like(variant.specs[name], device=self._device or "cpu")
            for variant in loaded.values()
            for name in variant.contract.state
        }

    def unload(self, *keys: int) -> None:
        """Drop signatures' variants and values."""
        for key in keys:
            self._values.pop(key, None)
            for phase in Phase:
                self._variants.pop((key, phase), None)

    def variant(self, key: int, phase: Phase) -> Variant:
        """The variant of a phase."""
        return self._variants[key, phase]

    def kept(self, key: int, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Values of those names that this rank keeps."""
        return {name: self._values[key][name] for name in names}

    def step(
        self, key: int, phase: Phase, step: int, fed: Mapping[str, torch.Tensor]
    ) -> Mapping[str, torch.Tensor]:
        """Run one step.

        Args:
            key: the captured signature.
            phase, step: checked against the peers by the program's guard.
            fed: inputs that changed since the last step of this key; the others are kept.

        Returns:
            What the program returns, by name.
        """
        begin = time.monotonic()
        variant = self._variants[key, phase]
        values = self._values[key]
        values.update(fed)
        values["stamp"] = torch.tensor([phase, step], dtype=torch.int64)
        returned = variant.call(*(values[name] for name in variant.contract.placeholders))
        values.update({name: returned[name] for name in variant.contract.new_state})
        if step != TRIAL:
            self._steps.append(RankStep(step, begin, ops.last_sent(), time.monotonic()))
        return returned

    def take_steps(self) -> tuple[RankStep, ...]:
        """When it ran which step, since this was last asked for."""
        steps, self._steps = tuple(self._steps), []
        return steps
