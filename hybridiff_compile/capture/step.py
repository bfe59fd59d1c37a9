"""The step program around an exported denoiser: a small graph of a call for each branch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx, nn

from hybridiff_compile.ir import Level, Parent, Phase, RankContract, StepProgram, output_node


def step_program(
    denoisers: Sequence[fx.GraphModule],
    names: Sequence[str] = ("",),
    inputs_of: Sequence[Mapping[str, str]] = ({},),
) -> StepProgram:
    """Write the small graph: the denoiser calls, then the batch of all predictions.

    Args:
        denoisers: for each branch, as exported, `(tensor arguments that are read) -> eps`; every
            node has its FakeTensor in `meta["val"]`. One module may serve several branches.
        names: of the branches; one of the name "" is a call of all of them.
        inputs_of: for each branch, the program's input by the name of the argument, where that is
            another one; see `Branches`.
    """
    graph, root, eps = fx.Graph(), nn.Module(), list[fx.Node]()
    inputs: dict[str, fx.Node] = {}
    modules = {module: f"denoiser{i or ''}" for i, module in enumerate(dict.fromkeys(denoisers))}
    called = list[tuple[fx.GraphModule, tuple[fx.Node, ...], torch.Tensor]]()
    for module, renamed in zip(denoisers, inputs_of, strict=True):
        args = []
        for node in module.graph.nodes:
            if node.op == "placeholder":
                name = renamed.get(node.target, node.target)
                if name not in inputs:
                    inputs[name] = graph.placeholder(name)
                    inputs[name].meta = {"val": node.meta["val"]}
                args.append(inputs[name])
        (result,) = output_node(module.graph).args
        assert isinstance(result, fx.Node)
        called.append((module, tuple(args), result.meta["val"]))
    for index, (branch, (module, args, value)) in enumerate(zip(names, called, strict=True)):
        name = f"eps_{branch}" if branch else "eps"
        node = graph.create_node("call_module", modules[module], args, name=name)
        node.meta = {"val": value} | ({"branch": index} if branch else {})
        eps.append(node)
    prediction = graph.call_function(torch.cat, (eps,))
    values = [value for _, _, value in called]
    rows = sum(value.shape[0] for value in values)
    prediction.meta = {"val": values[0].new_empty((rows, *values[0].shape[1:]))}
    graph.output({"prediction": prediction})
    for module, name in modules.items():
        root.add_module(name, module)
    parameters = {str(n.target) for m in modules for n in m.graph.nodes if n.op == "get_attr"}
    return StepProgram(
        phase=Phase.SERIAL,
        level=Level.CAPTURED,
        graphs=(Parent(root, graph, class_name="Step"),),
        contracts=(RankContract(inputs=tuple(inputs), results=("prediction",)),),
        parameters=frozenset(parameters),
    )
