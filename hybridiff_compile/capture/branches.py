"""The branches of one step, a denoiser call each, and which of their inputs they have in common."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from hybridiff_compile.capture.call import DenoiserCall, Rows, Signature, parts_in, unused
from hybridiff_compile.ir import branch_names


@dataclass(frozen=True)
class Branches:
    """What a step computes.

    Attributes:
        calls: one a branch, in the order of the prediction's rows.
    """

    calls: tuple[DenoiserCall, ...]

    @classmethod
    def of_batch(cls, call: DenoiserCall, rows: Rows) -> Branches:
        """The equal parts of one call's batch."""
        return cls(tuple(call.branch(i, rows) for i in range(parts_in(call, rows))))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the branches, in order."""
        return branch_names(len(self.calls))

    @cached_property
    def inputs_of(self) -> tuple[dict[str, str], ...]:
        """For each branch: the name of the program's input, by that of the tensor argument.

        A tensor that all branches are given is one input of its own name. Any other one is an
        input for each branch that has another tensor: `<name>_<branch>`.
        """
        tensors = [call.tensors() for call in self.calls]
        arguments = {name for own in tensors for name in own}
        found: list[dict[str, str]] = []
        for branch, own in zip(self.names, tensors, strict=True):
            names = {}
            for name, tensor in own.items():
                if all(name in other and other[name] is tensor for other in tensors):
                    names[name] = name
                    continue
                known = (
                    inputs[name]
                    for other, inputs in zip(tensors, found, strict=False)
                    if name in inputs and other[name] is tensor
                )
                names[name] = next(known, "") or unused(f"{name}_{branch}", arguments)
            found.append(names)
        return tuple(found)

    def inputs(self) -> dict[str, torch.Tensor]:
        """The inputs of the step program, by name."""
        values = {}
        for call, names in zip(self.calls, self.inputs_of, strict=True):
            for name, tensor in call.tensors().items():
                values.setdefault(names[name], tensor)
        return values

    def signature(self) -> Signature:
        """What must stay the same for a captured program to serve another step."""
        return self._signature

    @cached_property
    def _signature(self) -> Signature:
        shared = tuple(tuple(names.items()) for names in self.inputs_of)
        return (tuple(call.signature() for call in self.calls), shared)
