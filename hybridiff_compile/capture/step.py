"""The step program around an exported denoiser: a small graph of one call or two."""

from __future__ import annotations

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from hybridiff_compile.capture.call import DenoiserCall
from hybridiff_compile.ir import (
    BRANCHES,
    Level,
    Parent,
    Phase,
    RankContract,
    StepProgram,
    output_node,
)


def shared_names(call: DenoiserCall) -> tuple[str, ...]:
    """Names of the tensor arguments that both branches have in common, the noisy picture first."""
    tensors = call.tensors()
    noisy = next(iter(tensors))
    doubled = tensors[noisy].shape[0]
    unbatched = [n for n, t in tensors.items() if t.dim() == 0 or t.shape[0] != doubled]
    return (noisy, *(n for n in unbatched if n != noisy))


def prediction_of(graph: fx.Graph) -> fx.Node:
    """The node of the one value that an exported graph returns."""
    return pytree.tree_leaves(output_node(graph).args[0])[0]


def step_program(denoiser: fx.GraphModule, shared: tuple[str, ...]) -> StepProgram:
    """Write the small graph: the denoiser calls, then the batch that the pipeline expects.

    Args:
        denoiser: as exported, `(tensor arguments that are read) -> eps`; every node has its
            FakeTensor in `meta["val"]`.
        shared: names of the arguments that both branches have in common: a call a branch, of batch
            B. Empty: the denoiser was exported at the batch 2B, and one call serves both.
    """
    branches = BRANCHES if shared else ("",)
    values = {n.target: n.meta["val"] for n in denoiser.graph.nodes if n.op == "placeholder"}
    graph = fx.Graph()
    inputs: dict[str, fx.Node] = {}

    def placeholder(name: str, value: torch.Tensor) -> fx.Node:
        if name not in inputs:
            inputs[name] = graph.placeholder(name)
            inputs[name].meta = {"val": value}
        return inputs[name]

    def of(name: str, branch: str) -> str:
        return f"{name}_{branch}" if branch and name not in shared else name

    args = {
        branch: tuple(placeholder(of(name, branch), value) for name, value in values.items())
        for branch in branches
    }
    eps = []
    for branch in branches:
        node = graph.create_node("call_module", "denoiser", args[branch], name=of("eps", branch))
        node.meta = {"val": prediction_of(denoiser.graph).meta["val"]}
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
