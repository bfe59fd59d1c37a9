"""What the paper and its reference code say of a model, to show beside a plan.

The code lists modules for each of two ranks (kaist-dmlab/Hybridiff, hybridiff/pipe_config.py,
n = 2). For SDXL that is no cut by depth: rank 0 has the middle, rank 1 both ends. In a pipelined
step it sends what every listed module returns (SDXL), or what one block returns (SD3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from hybridiff_compile.bench.figures import Mode
from hybridiff_compile.ir import nbytes

#: Seconds and GB of a picture on two RTX 3090 over PCIe 3, 1024 x 1024, 50 steps (Table 1; "exact"
#: is condition partitioning only, Table 4). None was not published. They hold encoders and VAE.
TABLE: Mapping[str, Mapping[Mode, tuple[float, float | None]]] = {
    "sdxl": {
        "one-device": (16.49, None),
        "exact": (9.24, None),
        "paper": (7.12, 0.516),
        "asyncdiff": (12.54, 9.830),
    },
    "sd3-medium": {
        "one-device": (19.36, None),
        "paper": (9.33, 0.189),
        "asyncdiff": (9.82, 1.290),
    },
}

# Module paths of rank 0, and those of rank 1; what is in neither is run by both ranks.
_UP = "up_blocks.0"
_SDXL = (
    (
        *("down_blocks.2", "mid_block", f"{_UP}.resnets.0", f"{_UP}.attentions.0"),
        *(f"{_UP}.resnets.1", f"{_UP}.attentions.1"),
    ),
    (
        *("conv_in", "down_blocks.0", "down_blocks.1", "up_blocks.1", "up_blocks.2"),
        *(f"{_UP}.resnets.2", f"{_UP}.attentions.2", f"{_UP}.upsamplers.0"),
        *("conv_norm_out", "conv_out"),
    ),
)
_SD3 = (
    tuple(f"transformer_blocks.{i}" for i in range(12)),
    (*(f"transformer_blocks.{i}" for i in range(12, 24)), "norm_out", "proj_out"),
)
SPLITS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {"sdxl": _SDXL, "sd3-medium": _SD3}


@dataclass(frozen=True, slots=True)
class ReferenceSplit:
    """The same figures as of a cut.

    Attributes:
        cost: of rank 0 and of rank 1, as `balance.Place.cost`.
        sent: bytes that its ranks send in a pipelined step, at least.
        needed: bytes of what one rank reads of the other, were nothing else sent.
    """

    cost: tuple[float, float]
    sent: int
    needed: int


def measure(
    name: str, denoiser: fx.GraphModule, costs: Mapping[fx.Node, float], noisy: Sequence[fx.Node]
) -> ReferenceSplit | None:
    """Look at a denoiser as the reference splits it; None where it has no split for the model.

    Args:
        name: of the architecture.
        denoiser: its graph.
        costs: of each node.
        noisy: nodes that depend on the picture.
    """
    if name not in SPLITS:
        return None
    split = SPLITS[name]
    listed = {n: _module(n, (*split[0], *split[1])) for n in denoiser.graph.nodes}
    rank_of = _ranks(
        denoiser.graph, {m: r for r, modules in enumerate(split) for m in modules}, listed
    )
    cost = [
        sum(value for node, value in costs.items() if rank_of[node] in (rank, None))
        for rank in range(2)
    ]
    picture = set(noisy)
    needed = [
        n for n in noisy if {rank_of[u] for u in n.users if u in picture} - {rank_of[n], None}
    ]
    returned = [n for n in noisy if listed[n] and any(listed[u] != listed[n] for u in n.users)]
    sent = needed if name == "sd3-medium" else returned
    return ReferenceSplit((cost[0], cost[1]), _bytes(sent), _bytes(needed))


def _ranks(
    graph: fx.Graph, by_module: Mapping[str, int], listed: Mapping[fx.Node, str | None]
) -> dict[fx.Node, int | None]:
    """The rank that runs each node: of a listed module, else the one that reads it; None: both."""
    found: dict[fx.Node, int | None] = {}
    for node in reversed(graph.nodes):
        module, readers = listed[node], {found[u] for u in node.users}
        if module is not None:
            found[node] = by_module[module]
        else:
            found[node] = readers.pop() if len(readers) == 1 else None
    return found


def _module(node: fx.Node, modules: Sequence[str]) -> str | None:
    """The listed module that a node belongs to."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = {path for path, _ in stack.values()}
    return next((m for m in modules if m in paths), None)


def _bytes(nodes: Sequence[fx.Node]) -> int:
    return sum(nbytes(n.meta["val"]) for n in nodes)
