"""Where a denoiser computes, and moving a rank's program from there to the rank's own device."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate

from hybridiff_compile.errors import UnsupportedPipelineError
from hybridiff_compile.ir import RankProgram


def device_of(denoiser: nn.Module) -> torch.device:
    """The device of a denoiser's parameters.

    Raises:
        UnsupportedPipelineError: it has none.
    """
    parameter = next(denoiser.parameters(), None)
    if parameter is None:
        raise UnsupportedPipelineError(
            f"the denoiser, a {type(denoiser).__name__}, has no parameters, so there is nothing to "
            "compute on several ranks; pass a pipeline whose weights are loaded."
        )
    return parameter.device


def retarget(program: RankProgram, device: torch.device) -> RankProgram:
    """Let every node that names a non-CPU device name `device`; edits the program's modules.

    Stamps and tokens stay on the CPU, where they are made.
    """
    if device.type == "cpu":
        return program

    def swap(arg: Any) -> Any:
        return device if isinstance(arg, torch.device) and arg.type != "cpu" else arg

    for module in program.module.modules():
        if not isinstance(module, fx.GraphModule):
            continue
        for node in module.graph.nodes:
            node.args = map_aggregate(node.args, swap)
            node.kwargs = map_aggregate(node.kwargs, swap)
        module.recompile()
    return program
