"""cut-stages: the denoiser becomes stage0 ; stage1, cut where cost balances and few bytes cross."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx

from hybridiff_compile.ir import (
    Level,
    StepProgram,
    clone,
    output_node,
    returned_values,
)
from hybridiff_compile.layout import Layout, PackCut
from hybridiff_compile.passes.balance import RATES, Cuts, choose
from hybridiff_compile.passes.base import Pass


@dataclass(frozen=True)
class CutStages(Pass):
    """Call the denoiser as two stages; rank 0 keeps its cut for a pipelined step that may follow.

    Contract: `eps = denoiser(sample, e...)` becomes
        `cut = stage0(sample, e...)`, a tuple of tensors, and `eps = stage1(cut, e...)`;
        rank 0 returns `cut` packed into one buffer, uint8[nbytes], as new state (`keep_cut`).
    Exact: the same nodes in the same order. Nodes that do not depend on the noisy picture are made
    by every stage that reads them, so they are never stale (paper Sec. 4.2). What stage1 makes of
    less bytes sooner than it could be sent, it makes again: then the picture crosses for it.
    """

    name: ClassVar = "cut-stages"
    needs: ClassVar = Level.SPLIT
    gives: ClassVar = Level.CUT

    keep_cut: bool = True
    #: Kind of device whose rates decide; None is that of the weights.
    device: str | None = None

    def __call__(self, program: StepProgram) -> StepProgram:
        graphs = tuple(clone(module) for module in program.graphs)
        cut: dict[fx.GraphModule, tuple[fx.GraphModule, fx.GraphModule]] = {}
        for rank, module in enumerate(graphs):
            calls = [n for n in module.graph.nodes if n.op == "call_module"]
            for call in calls:
                denoiser = module.get_submodule(str(call.target))
                assert isinstance(denoiser, fx.GraphModule)
                if denoiser not in cut:
                    cut[denoiser] = stages(denoiser, self.device)
                _cut_call(module, call, denoiser, cut[denoiser], self.keep_cut and rank == 0)
            for name in {str(call.target) for call in calls}:
                module.delete_submodule(name)
        first, *others = program.contracts
        kept = ("cut",) if self.keep_cut else ()
        contracts = (replace(first, new_state=(*first.new_state, *kept)), *others)
        return replace(program, level=Level.CUT, graphs=graphs, contracts=contracts)


def _cut_call(
    module: fx.GraphModule,
    call: fx.Node,
    denoiser: fx.GraphModule,
    pair: tuple[fx.GraphModule, fx.GraphModule],
    keep_cut: bool,
) -> None:
    """Replace a denoiser call of a rank's graph, in place."""
    graph, number = module.graph, str(call.target).removeprefix("denoiser")
    first, last = (f"{stage}_{number}" if number else stage for stage in ("stage0", "stage1"))
    stage0, stage1 = pair
    given = dict(zip(_placeholders(denoiser), call.args, strict=True))
    module.add_submodule(first, stage0)
    module.add_submodule(last, stage1)
    suffix = call.name.removeprefix("eps")
    with graph.inserting_before(call):
        cut = graph.create_node(
            "call_module",
            first,
            tuple(given[name] for name in _placeholders(stage0)),
            name=f"features{suffix}",
        )
        cut.meta = {**call.meta, "val": output_node(stage0.graph).meta["val"]}
        rest = (given[name] for name in _placeholders(stage1)[1:])
        eps = graph.create_node(
            "call_module",
            last,
            (cut, *rest),
            name=f"stage1{suffix}",
        )
        eps.meta = dict(call.meta)
        if keep_cut:
            layout = Layout.of(cut.meta["val"])
            module.add_submodule("pack", PackCut(layout))
            packed = graph.create_node("call_module", "pack", (cut,), name="cut")
            packed.meta = {"val": cut.meta["val"][0].new_empty(layout.nbytes, dtype=torch.uint8)}
            output_node(graph).args = ({**returned_values(graph), "cut": packed},)
    call.replace_all_uses_with(eps)
    graph.erase_node(call)


def _placeholders(module: fx.GraphModule) -> list[str]:
    return [n.name for n in module.graph.nodes if n.op == "placeholder"]


def stages(
    denoiser: fx.GraphModule, device: str | None = None
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Cut a denoiser graph at the best place.

    Args:
        denoiser: `(sample, e0, e1, ...) -> eps`, all nodes with FakeTensors in `meta["val"]`.
        device: as in `CutStages`.

    Returns:
        stage0 `(sample, e...) -> (t0, t1, ...)` and stage1 `((t0, t1, ...), e...) -> eps`, which
        share the denoiser's parameters. One of the t may be the sample itself.
    """
    result = output_node(denoiser.graph).args[0]
    assert isinstance(result, fx.Node)
    cuts = Cuts(denoiser, RATES[device or result.meta["val"].device.type])
    return stages_at(denoiser, cuts, choose(cuts.places()).index)


def stages_at(
    denoiser: fx.GraphModule, cuts: Cuts, index: int
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Cut a denoiser graph after the noisy node of an index; see `stages`."""
    at = cuts.crossing(index)
    head, tail = set(cuts.noisy[: index + 1]), set(cuts.noisy[index + 1 :])
    result = output_node(denoiser.graph).args[0]
    assert isinstance(result, fx.Node)
    first = _stage(denoiser, head | set(at.tensors), (), at.tensors)
    return first, _stage(denoiser, tail | at.again, at.tensors, result)


def _stage(
    denoiser: fx.GraphModule,
    noisy: set[fx.Node],
    features: tuple[fx.Node, ...],
    returned: tuple[fx.Node, ...] | fx.Node,
) -> fx.GraphModule:
    """Extract a stage's nodes, and what they need that does not depend on the noisy picture."""
    needed = _with_ancestors(noisy, stop=set(features)) - set(features)
    graph, env = fx.Graph(), {}
    if features:
        cut = graph.placeholder("cut")
        cut.meta = {"val": tuple(n.meta["val"] for n in features)}
    for node in (n for n in denoiser.graph.nodes if n.op == "placeholder" and n in needed):
        env[node] = graph.node_copy(node)
    for i, node in enumerate(features):
        env[node] = graph.call_function(operator.getitem, (cut, i))
        env[node].meta = dict(node.meta)
    for node in denoiser.graph.nodes:
        if node in needed and node.op != "placeholder":
            env[node] = graph.node_copy(node, env.__getitem__)
    out = graph.output(fx.map_arg(returned, env.__getitem__))
    out.meta = {"val": fx.map_arg(returned, lambda n: n.meta["val"])}
    return fx.GraphModule(denoiser, graph, class_name="Stage1" if features else "Stage0")


def _with_ancestors(nodes: set[fx.Node], stop: set[fx.Node]) -> set[fx.Node]:
    found, todo = set(nodes), list(nodes)
    while todo:
        for node in todo.pop().all_input_nodes:
            if node not in found and node not in stop:
                found.add(node)
                todo.append(node)
    return found
