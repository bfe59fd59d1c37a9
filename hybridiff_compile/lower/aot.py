"""Compile a stage ahead of time into an AOTInductor package, and run it from there.

A package holds no weights: a rank points it at those that it already has.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from hybridiff_compile.ir import RankProgram
from hybridiff_compile.lower.flat import Compiled, Flat

# The weights stay outside, under their own names, for every rank and stage to share.
_SETTINGS = {"aot_inductor.package_constants_in_so": False, "always_keep_tensor_constants": True}
_MODEL = "model"


class Packaged(nn.Module):
    """A stage in a package: it stands in a program until a rank loads it.

    Attributes:
        path: of the `.pt2` file.
        weights: by the name in the package.
        keys: what the stage returns; see `Flat`.
    """

    def __init__(
        self, path: Path, weights: Mapping[str, torch.Tensor], keys: tuple[str, ...] | str | None
    ) -> None:
        super().__init__()
        self.path, self.weights, self.keys = path, dict(weights), keys

    def forward(self, *args: Any) -> Any:
        """Refuse: a rank's lowering puts the loaded stage in this place."""
        raise RuntimeError(f"{self.path} was not loaded")


def compile_to(flat: Flat, path: Path, device: torch.device) -> None:
    """Compile one stage for static shapes into `path`, a `.pt2` file."""
    from torch import _inductor as inductor
    from torch._inductor import config

    examples = tuple(flat.examples(device)[len(flat.values) :])
    # torch notes there what it compiles for, and leaves it: part of the key of Inductor's caches.
    noted = config.patch({"aot_inductor.metadata": {}})
    with torch.no_grad(), noted, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of its own pytrees
        program = torch.export.export(flat.attached(), examples, strict=False)
        inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs=_SETTINGS
        )


def load(stage: Packaged, device: torch.device) -> Compiled:
    """Load a compiled stage and point it at its weights; nothing is traced or unpickled."""
    from torch._C._aoti import AOTIModelPackageLoader  # pyright: ignore[reportMissingModuleSource]

    index = -1 if device.type == "cpu" else device.index or 0
    loader = AOTIModelPackageLoader(str(stage.path), _MODEL, False, 1, index)
    weights = {name: tensor.detach() for name, tensor in stage.weights.items()}
    loader.load_constants(weights, False, True, user_managed=True)

    def run(*inputs: torch.Tensor) -> Sequence[torch.Tensor]:
        assert weights  # the loaded code reads their memory, so they live as long as it does
        return loader.run(list(inputs))

    return Compiled(run, stage.keys)


def load_all(programs: Sequence[RankProgram], device: torch.device) -> dict[nn.Module, nn.Module]:
    """Load every packaged stage of a rank's programs, once each."""
    found = [m for p in programs for m in p.module.modules() if isinstance(m, Packaged)]
    by_path: dict[Path, Compiled] = {}
    for stage in found:
        if stage.path not in by_path:
            by_path[stage.path] = load(stage, device)
    return cast(dict[nn.Module, nn.Module], {s: by_path[s.path] for s in found})
