"""The step program around an exported denoiser: a small graph of one call or two."""

from __future__ import annotations

import torch
from torch import fx, nn

from hybridiff_compile.capture.call import Rows
from hybridiff_compile.ir import (
    BRANCHES,
    Level,
    Parent,
    Phase,
    RankContract,
    StepProgram,
    output_node,
)


def step_program(denoiser: fx.GraphModule, rows: Rows) -> StepProgram:
    """Write the small graph: the denoiser calls, then the batch that the pipeline expects.

    Args:
        denoiser: as exported, `(tensor arguments that are read) -> eps`; every node has its
            FakeTensor in `meta["val"]`.
        rows: where the rows of each argument are: two calls, each of half the batch. Empty: the
            denoiser was exported at the whole batch, and one call serves it.
    """
    branches = BRANCHES if rows else ("",)
    (result,) = output_node(denoiser.graph).args
    assert isinstance(result, fx.Node)
    values = {n.target: n.meta["val"] for n in denoiser.graph.nodes if n.op == "placeholder"}
    graph = fx.Graph()
    inputs: dict[str, fx.Node] = {}

    def placeholder(name: str, value: torch.Tensor) -> fx.Node:
        if name not in inputs:
            inputs[name] = graph.placeholder(name)
            inputs[name].meta = {"val": value}
        return inputs[name]

    def of(name: str, branch: str) -> str:
        return f"{name}_{branch}" if branch and name in rows else name

    args = {
        branch: tuple(placeholder(of(name, branch), value) for name, value in values.items())
        for branch in branches
    }
    eps = []
    for branch in branches:
        node = graph.create_node(
            "call_module", "denoiser", args[branch], name=f"eps_{branch}" if branch else "eps"
        )
        node.meta = {"val": result.meta["val"]}
        node.meta |= {"branch": branch} if branch else {}
        eps.append(node)
    prediction = graph.call_function(torch.cat, (eps,))
    first = eps[0].meta["val"]
    prediction.meta = {"val": first.new_empty((len(eps) * first.shape[0], *first.shape[1:]))}
    graph.output({"prediction": prediction})
    root = nn.Module()
    root.add_module("denoiser", denoiser)
    parameters = {str(n.target) for n in denoiser.graph.nodes if n.op == "get_attr"}
    return StepProgram(
        phase=Phase.SERIAL,
        level=Level.CAPTURED,
        graphs=(Parent(root, graph, class_name="Step"),),
        contracts=(RankContract(inputs=tuple(inputs), results=("prediction",)),),
        parameters=frozenset(parameters),
    )
