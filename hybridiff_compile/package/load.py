"""Read a package: programs from JSON, weights from safetensors, stages as files for the ranks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import fx, nn
from torch.utils import _pytree as pytree

from hybridiff_compile.capture.call import Signature
from hybridiff_compile.capture.prediction import Form
from hybridiff_compile.entry import Entry
from hybridiff_compile.errors import PackageError
from hybridiff_compile.ir import Level, Phase, RankContract, StepProgram
from hybridiff_compile.lower.aot import Packaged
from hybridiff_compile.package import codec, manifest
from hybridiff_compile.runtime.fleet import new_key

_Rank = tuple[fx.GraphModule, RankContract]


def entries(folder: Path, made: manifest.Manifest, denoiser: nn.Module) -> dict[Signature, Entry]:
    """Give a denoiser the package's weights, and return the package's programs around them.

    Args:
        folder: of a package that was checked.
        made: its manifest.
        denoiser: of the class and with the parameters that the package was made from; its values
            are overwritten in place.

    Raises:
        PackageError: the denoiser is another one.
    """
    if type(denoiser).__name__ != made.denoiser:
        raise PackageError(
            f"{folder} was exported from a {made.denoiser}, the pipeline has a "
            f"{type(denoiser).__name__}; load it into a pipeline of the same kind."
        )
    own = dict((*denoiser.named_parameters(), *denoiser.named_buffers()))
    stored = load_file(folder / manifest.WEIGHTS)
    _check_weights(folder, stored, own)
    weights = stored | {name: own[name] for name in stored.keys() & own.keys()}

    def stage(data: codec.Json) -> nn.Module:
        keys = data["keys"]
        return Packaged(
            folder / data["file"],
            {name: weights[name] for name in data["weights"]},
            tuple(keys) if isinstance(keys, list) else keys,
        )

    ranks = [json.loads((folder / f"rank{r}.json").read_text()) for r in range(made.ranks)]
    found = {}
    for call, *by_rank in zip(made.calls, *ranks, strict=True):
        programs = {
            phase: _program(phase, [codec.decode(rank[phase.name], stage) for rank in by_rank])
            for phase in (Phase[name] for name in by_rank[0])
        }
        form = Form(pytree.treespec_loads(call.answer), call.answer_leaves)
        found[_signature(call)] = Entry(new_key(), call.rows, form, programs)
    with torch.no_grad():  # last, so that a package that is refused changes nothing
        for name in stored.keys() & own.keys():
            own[name].copy_(stored[name])
    return found


def _program(phase: Phase, parts: list[_Rank]) -> StepProgram:
    graphs, contracts = zip(*parts, strict=True)
    return StepProgram(phase, Level.GUARDED, graphs, contracts, frozenset())


def _signature(call: manifest.Call) -> Signature:
    def leaf(of: manifest.Leaf) -> Any:
        if of.constant is not None:
            return of.constant
        return of.shape, of.stride, getattr(torch, str(of.dtype)), torch.device(str(of.device))

    return call.names, tuple(leaf(of) for of in call.leaves), call.arguments


def _check_weights(
    folder: Path, stored: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]
) -> None:
    """Refuse weights of another shape or dtype; a name the denoiser lacks is a graph's constant."""
    for name in stored.keys() & own.keys():
        theirs, ours = stored[name], own[name]
        if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            raise PackageError(
                f"{folder}: weight {name} is {theirs.dtype}{list(theirs.shape)}, the pipeline's is "
                f"{ours.dtype}{list(ours.shape)}; load it into a pipeline of the same checkpoint."
            )
