"""From a rank's programs to variants that run: eager, or composed of compiled parts."""

from __future__ import annotations

import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from hybridiff_compile.config import Lowering
from hybridiff_compile.errors import HybridiffError
from hybridiff_compile.ir import RankProgram, Variant
from hybridiff_compile.lower import compose, eager, regional
from hybridiff_compile.lower.flat import Compiled, Flat, Run, flatten
from hybridiff_compile.share import share

logger = logging.getLogger(__name__)

#: The second half of a lowering.
Finish = Callable[[], list[Variant]]


def prepare(programs: Sequence[RankProgram], how: Lowering) -> list[RankProgram]:
    """Rewrite programs for their backend, once, before they travel to their ranks.

    Args:
        programs: of all ranks and phases, so that what they share is rewritten once.
    """
    if how.scope != "regional":
        return list(programs)
    stages = compose.parts(programs, "stage")
    outlined = regional.outline(*stages)
    if stages and not any(compose.children(stage) for stage in outlined):
        logger.warning("scope='regional' found no repeated blocks: the denoiser runs eagerly")
    made: dict[nn.Module, nn.Module] = dict(zip(stages, outlined, strict=True))
    modules = [compose.replace(p.module, made) for p in programs]
    return [replace(p, module=m) for p, m in zip(programs, modules, strict=True)]  # pyright: ignore


def get_ready(how: Lowering, device: torch.device) -> Callable[[], None]:
    """Import this process's compiler and let it look at the machine; see `inductor.get_ready`.

    Returns:
        What to call before `begin`.
    """
    if how.backend != "inductor":
        return lambda: None
    from hybridiff_compile.lower import inductor

    return inductor.get_ready(device)


def warm(how: Lowering, device: torch.device) -> None:
    """Fill the compiler's cache with what does not depend on the graph: it takes many seconds.

    On a CPU, Inductor tries instruction sets and compiles a header before its first kernel.
    """
    if how.backend != "inductor":
        return
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(64, device=device)
    graph.output(graph.call_function(torch.ops.aten.sin.default, (x,)))
    # Without a mode: CUDA graphs may only be used by the thread that first asked for them.
    _compile(flatten(fx.GraphModule(nn.Module(), graph)), replace(how, compile_mode=None), device)


def begin(
    programs: Sequence[RankProgram],
    how: Lowering,
    device: torch.device,
    ranks: int = 2,
    tell: Callable[[str], None] = lambda text: None,
) -> Finish:
    """Lower a rank's programs, in two halves with the ranks meeting in between.

    Every rank needs both stages in a serial step. Each compiles its share of them here; what is
    returned takes the others' from the cache that the ranks share, once they are there.

    Args:
        programs: of one rank, one a phase.
        how: backend, scope and mode.
        device: of this rank.
        ranks: that share the work.
        tell: told about every part as it begins. One that cannot be compiled stays a graph, and a
            warning says so.
    """
    if how.backend == "eager":
        return lambda: [eager.lower(p) for p in programs]
    if how.backend == "aot":
        from hybridiff_compile.lower import aot

        return lambda: compose.compose(programs, aot.load_all(programs, device))
    flats = {part: flatten(part) for part in compose.parts(programs, how.scope)}
    alike: dict[Hashable, list[fx.GraphModule]] = defaultdict(list)
    for part, flat in flats.items():
        # An engine holds its weights, so it serves one part only.
        alike[part if how.backend == "tensorrt" else flat.key].append(part)
    groups = list(alike.values())
    rank, made = programs[0].rank, {}
    owner = [rank] * len(groups)
    if how.scope != "whole":  # a whole step is a rank's own; everything else, both may need
        owner = share([len(g[0].graph.nodes) for g in groups], ranks)

    def compile_those(own: bool) -> None:
        for i, group in enumerate(groups):
            if (owner[i] == rank) is own:
                tell(f"compiling part {i + 1} of {len(groups)}")
                if run := _compiled(flats[group[0]], len(group), how, device):
                    made.update({p: Compiled(run, flats[p].keys, flats[p].values) for p in group})

    def finish() -> list[Variant]:
        compile_those(own=False)
        variants = compose.compose(programs, made)
        return _stepwise(variants) if _has_cuda_graphs(how, device) else variants

    compile_those(own=True)
    return finish


def compilations() -> int:
    """How many graphs this process has compiled so far, by torch's own counters, cached or not."""
    counters = getattr(sys.modules.get("torch._dynamo.utils"), "counters", None)
    if counters is None:  # no compiler was imported, or another thread is about to
        return 0
    inductor = counters["inductor"]
    return sum(inductor[f"fxgraph_cache_{how}"] for how in ("miss", "hit", "bypass"))


def _compiled(flat: Flat, count: int, how: Lowering, device: torch.device) -> Run | None:
    """A compiled part that is there so many times; None if the compiler fails, which is said."""
    try:
        return _compile(flat, how, device)
    except HybridiffError:
        raise
    except Exception as e:  # whatever a compiler says of code that it does not know
        logger.warning(
            "a part of %d nodes (%d in the denoiser) cannot be compiled and runs eagerly: %s: %s",
            len(flat.module.graph.nodes),
            count,
            type(e).__name__,
            str(e).strip().partition("\n")[0][:200],
        )
        return None


def _has_cuda_graphs(how: Lowering, device: torch.device) -> bool:
    if device.type != "cuda" or how.compile_mode is None:
        return False
    from hybridiff_compile.lower import inductor

    return inductor.has_cuda_graphs(how.compile_mode)


def _stepwise(variants: Sequence[Variant]) -> list[Variant]:
    """Tell CUDA graphs at each step that the outputs of the last one may be written over.

    torch.compile does so at each call of what it compiled; here nobody would, and every step would
    be recorded anew. What outlives a step is a copy that the step program made.
    """

    def stepwise(call: Callable[..., Mapping[str, torch.Tensor]]) -> Callable[..., Any]:
        def step(*args: torch.Tensor) -> Mapping[str, torch.Tensor]:
            torch.compiler.cudagraph_mark_step_begin()
            return call(*args)

        return step

    return [replace(v, call=stepwise(v.call)) for v in variants]


def _compile(flat: Flat, how: Lowering, device: torch.device) -> Run:
    if how.backend == "tensorrt":
        from hybridiff_compile.lower import tensorrt

        return tensorrt.compile_flat(flat, device)
    from hybridiff_compile.lower import inductor

    return inductor.compile_flat(flat, device, how.compile_mode, linked=how.scope == "whole")
