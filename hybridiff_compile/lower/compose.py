"""Which parts of a rank's programs are compiled, and how the phases are composed from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import fx, nn

from hybridiff_compile.config import Scope
from hybridiff_compile.ir import RankProgram, Variant, clone, has_leaf


def parts(programs: Sequence[RankProgram], scope: Scope) -> list[fx.GraphModule]:
    """The distinct graphs to compile, in the order of their first use.

    "stage": the denoiser's stages, which the phases share; "regional": the repeated blocks inside
    them; "whole": every phase's program with its links inside.
    """
    found = [p.module for p in programs]
    for _ in range(("whole", "stage", "regional").index(scope)):
        found = [child for module in found for child in children(module)]
    return [module for module in dict.fromkeys(found) if not has_leaf(module)]


def children(module: fx.GraphModule) -> list[fx.GraphModule]:
    """The graph modules that a graph module calls, in the order of their first call.

    By the graph and not by its attributes, whose order is another one where it was rebuilt: the
    ranks must count the same parts in the same order.
    """
    called = (module.get_submodule(n.target) for n in module.graph.nodes if n.op == "call_module")
    return [child for child in dict.fromkeys(called) if isinstance(child, fx.GraphModule)]


def compose(programs: Sequence[RankProgram], made: Mapping[nn.Module, nn.Module]) -> list[Variant]:
    """Put compiled parts in the place of the graphs that they were made from."""
    done = dict(made)
    return [
        Variant(p.phase, p.contract, p.specs, cast(fx.GraphModule, replace(p.module, done)))
        for p in programs
    ]


def replace(module: nn.Module, by: dict[nn.Module, nn.Module]) -> nn.Module:
    """Copy a graph module with some of the modules in it exchanged; notes the copies."""
    if module not in by and isinstance(module, fx.GraphModule):
        copy = clone(module)
        for name, child in module.named_children():
            copy.add_module(name, replace(child, by))
        by[module] = copy
    return by.get(module, module)
