"""A graph as a function of plain tensors, weights first: the form that every compiler takes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate

from hybridiff_compile.ir import output_node

#: A compiled `Flat.module`: `(w0, ..., x0, ...) -> (r0, ...)`.
Run = Callable[..., Sequence[torch.Tensor]]


@dataclass(frozen=True)
class Flat:
    """A graph with its weights lifted out and its tuples opened.

    Attributes:
        module: `(w0, w1, ..., x0, x1, ...) -> (r0, r1, ...)`, tensors only.
        weights: names of the lifted weights, in order.
        values: the weights.
        specs: of each other input, a tensor of its shape, strides and dtype (fake, or empty).
        keys: what the graph returns: names for a dict, None for a tuple, "" for one tensor.
    """

    module: fx.GraphModule
    weights: tuple[str, ...]
    values: tuple[torch.Tensor, ...]
    specs: tuple[torch.Tensor, ...]
    keys: tuple[str, ...] | str | None

    @property
    def key(self) -> Hashable:
        """Equal for two graphs that one compiled function serves, each with its own weights."""
        tensors = (*self.values, *self.specs)
        return self.module.code, tuple((t.shape, t.stride(), t.dtype, t.device) for t in tensors)

    def examples(self, device: torch.device) -> list[torch.Tensor]:
        """Inputs of the right shapes for a compiler: the weights, then zeros on `device`."""
        made = [
            torch.empty_strided(
                spec.shape,
                spec.stride(),
                dtype=spec.dtype,
                device=device if spec.device.type != "cpu" else spec.device,  # stamps stay there
            ).zero_()
            for spec in self.specs
        ]
        # Not as parameters: those trace to other nodes than the plain tensors of a worker, and the
        # ranks would not find each other's code in the cache.
        return [*(value.detach() for value in self.values), *made]

    def attached(self) -> fx.GraphModule:
        """The graph with its weights inside again, `(x0, ...) -> (r0, ...)`; by their own names."""
        root, graph = nn.Module(), fx.Graph()
        names = dict(zip(self.weights, self.values, strict=True))
        env: dict[fx.Node, fx.Node] = {}
        held = iter(names.items())
        for node in self.module.graph.nodes:
            if node.op == "placeholder" and len(env) < len(names):
                name, tensor = next(held)
                hold(root, name, tensor)
                env[node] = graph.get_attr(name)
            else:
                env[node] = graph.node_copy(node, env.__getitem__)
        for name, child in self.module.named_children():
            root.add_module(name, child)
        return fx.GraphModule(root, graph, class_name="Attached")


class Compiled(nn.Module):
    """A compiled part in the place of the child that it was made from.

    Attributes of the child that it must keep: it takes tensors and tuples of them, and returns what
    `keys` says (see `Flat`).
    """

    def __init__(
        self,
        run: Run,
        keys: tuple[str, ...] | str | None,
        weights: Sequence[torch.Tensor] = (),
    ) -> None:
        super().__init__()
        self._run, self._keys, self._weights = run, keys, tuple(weights)

    def forward(self, *args: Any) -> Any:
        """Run the part on the arguments that the child took."""
        opened = [t for a in args for t in (a if isinstance(a, tuple | list) else (a,))]
        returned = self._run(*self._weights, *opened)
        if self._keys is None:
            return tuple(returned)
        if isinstance(self._keys, str):
            return returned[0]
        return dict(zip(self._keys, returned, strict=True))


def flatten(module: fx.GraphModule) -> Flat:
    """Open a graph: children inlined, tuples opened, weights lifted to the front.

    Args:
        module: placeholders carry a tensor, or a tuple of tensors, in `meta["val"]`.
    """
    graph = fx.Graph()
    inputs: list[fx.Node] = []
    given = []
    for node in (n for n in module.graph.nodes if n.op == "placeholder"):
        made = _open(graph, node)
        inputs += made
        given.append(tuple(made) if isinstance(node.meta["val"], tuple | list) else made[0])
    weights: dict[str, fx.Node] = {}
    values: dict[str, torch.Tensor] = {}
    root = nn.Module()

    def weight(owner: nn.Module, name: str) -> fx.Node:
        held = _get(owner, name)
        if name not in weights:
            last = next(reversed(weights.values()), None)
            # The first one goes before all that is there, the inputs too.
            with graph.inserting_after(last) if last else graph.inserting_before(None):
                weights[name] = graph.placeholder(f"w{len(weights)}")
            values[name] = held
        if values[name] is not held:
            raise ValueError(f"two children hold different weights of the name {name!r}")
        return weights[name]

    result = _inline(module, graph, given, weight, root)
    leaves, keys = _leaves(result)
    graph.output(tuple(leaves))
    flat = fx.GraphModule(root, graph, class_name="Flat")
    specs = tuple(n.meta["val"] for n in inputs)
    return Flat(flat, tuple(weights), tuple(values.values()), specs, keys)


def hold(root: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Register a weight under a dotted name, as a parameter or a buffer as it was."""
    *path, leaf = name.split(".")
    owner = root
    for part in path:
        if part not in dict(owner.named_children()):
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(leaf, tensor)
    else:
        owner.register_buffer(leaf, tensor)


def _open(graph: fx.Graph, node: fx.Node) -> list[fx.Node]:
    value = node.meta["val"]
    several = isinstance(value, tuple | list)
    made = []
    for i, leaf in enumerate(value if several else (value,)):
        made.append(graph.placeholder(f"{node.name}_{i}" if several else node.name))
        made[-1].meta = {"val": leaf}
    return made


def _inline(
    module: fx.GraphModule,
    graph: fx.Graph,
    given: Sequence[Any],
    weight: Callable[[nn.Module, str], fx.Node],
    root: nn.Module,
) -> Any:
    """Copy a module's nodes into `graph`; return what it returns, in terms of the new nodes."""
    env: dict[fx.Node, Any] = {}
    arguments = iter(given)

    def mapped(args: Any) -> Any:
        return map_aggregate(args, lambda a: env[a] if isinstance(a, fx.Node) else a)

    for node in module.graph.nodes:
        if node.op == "placeholder":
            env[node] = next(arguments)
        elif node.op == "get_attr":
            env[node] = weight(module, str(node.target))
        elif node.op == "output":
            return mapped(node.args[0])
        elif node.op == "call_module":
            child = module.get_submodule(str(node.target))
            args = mapped(node.args)
            if isinstance(child, fx.GraphModule):
                env[node] = _inline(child, graph, args, weight, root)
            else:
                root.add_module(str(node.target), child)
                env[node] = graph.create_node("call_module", node.target, args)
        elif node.target is operator.getitem and isinstance(mapped(node.args[0]), tuple | list):
            env[node] = mapped(node.args[0])[node.args[1]]
        else:
            args, kwargs = mapped(node.args), mapped(node.kwargs)
            env[node] = graph.create_node(node.op, node.target, args, kwargs, name=node.name)
    raise ValueError(f"{output_node(module.graph)} is not an output")


def _leaves(result: Any) -> tuple[list[fx.Node], tuple[str, ...] | str | None]:
    if isinstance(result, dict):
        return list(result.values()), tuple(result)
    if isinstance(result, tuple | list):
        return list(result), None
    return [result], ""


def _get(owner: nn.Module, name: str) -> torch.Tensor:
    path, _, leaf = name.rpartition(".")
    return getattr(owner.get_submodule(path), leaf)
