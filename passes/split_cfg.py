"""split-cfg: one graph becomes one per rank, each keeping its own branch (paper Sec. 4.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import fx

from hybridiff_compile.ir import Level, Parent, RankContract, StepProgram, returned_values
from hybridiff_compile.passes.balance import RATES, node_costs
from hybridiff_compile.passes.base import Pass
from hybridiff_compile.share import share


@dataclass(frozen=True)
class SplitCfg(Pass):
    """Give each rank the nodes of its branches, and rank 0 everything else.

    Contract: `step(sample, e_u, e_c) -> prediction` becomes
        `rank0(sample, e_u, eps_c from 1) -> prediction` and `rank1(sample, e_c) -> eps_c to 0`.
    Exact: every node computes what it computed before. A node's branch is its `meta["branch"]`, an
    index; more branches than ranks are placed by cost. A node without one belongs to rank 0, where
    the pipeline lives. So a step that was captured with its branches together is rank 0's, and rank
    1 has nothing to do.
    """

    name: ClassVar = "split-cfg"
    needs: ClassVar = Level.CAPTURED
    gives: ClassVar = Level.SPLIT

    ranks: int = 2

    def __call__(self, program: StepProgram) -> StepProgram:
        (module,) = program.graphs
        placed = share(_costs(module, self.ranks), self.ranks)

        def rank_of(node: fx.Node) -> int:
            return placed[node.meta["branch"]] if "branch" in node.meta else 0

        ranks = range(self.ranks)
        pairs = [_graph_of_rank(module, program.contracts[0], rank, rank_of) for rank in ranks]
        graphs, contracts = zip(*pairs, strict=True)
        return replace(program, level=Level.SPLIT, graphs=graphs, contracts=contracts)


def _costs(module: fx.GraphModule, ranks: int) -> list[int]:
    """Of each branch, in order; of no interest, and not counted, where each has its own rank."""
    calls = [n for n in module.graph.nodes if "branch" in n.meta]
    if len(calls) <= ranks:
        return [1] * len(calls)
    rates = RATES[calls[0].meta["val"].device.type]
    called = {n.target: module.get_submodule(n.target) for n in calls}
    costs = {
        name: sum(node_costs(child, rates).values()) or 1  # of a leaf, nothing is known
        for name, child in called.items()
        if isinstance(child, fx.GraphModule)
    }
    return [costs[n.target] for n in calls]


def _graph_of_rank(
    module: fx.GraphModule, contract: RankContract, rank: int, rank_of: Callable[[fx.Node], int]
) -> tuple[fx.GraphModule, RankContract]:
    calls = [n for n in module.graph.nodes if n.op not in ("placeholder", "output")]
    own = [n for n in calls if rank_of(n) == rank]
    reads = {a for n in own for a in n.all_input_nodes}
    imports = [n for n in calls if n in reads and rank_of(n) != rank]
    exports = [
        (n, r) for n in own for r in sorted({rank_of(u) for u in n.users if u.op != "output"})
    ]
    exports = [(n, r) for n, r in exports if r != rank]
    inputs = [n for n in module.graph.nodes if n.op == "placeholder" and n in reads]

    graph, env = fx.Graph(), {}
    for node in inputs:
        env[node] = graph.node_copy(node)
    for node in imports:
        env[node] = graph.placeholder(node.name)
        env[node].meta = {"val": node.meta["val"]}
    for node in own:
        env[node] = graph.node_copy(node, env.__getitem__)
    results = returned_values(module.graph) if rank == 0 else {}
    graph.output({k: env[n] for k, n in results.items()} | {n.name: env[n] for n, _ in exports})
    return Parent(module, graph, class_name=f"Rank{rank}"), RankContract(
        inputs=tuple(n.name for n in inputs),
        imports=tuple((n.name, rank_of(n)) for n in imports),
        results=contract.results if rank == 0 else (),
        exports=tuple((n.name, r) for n, r in exports),
    )
