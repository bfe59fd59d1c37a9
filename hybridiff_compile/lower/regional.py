"""Find a stage's repeated blocks in its graph, and make each a child that is compiled for itself.

No list of class names: a block is what a module of the denoiser became in the graph, and two blocks
are the same when their nodes are, up to their weights and the values that they are given. Equal
blocks become children of equal code, of which a compiler is given one.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import fx
from torch.fx.node import map_arg

from hybridiff_compile.ir import clone

# A smaller block leaves a compiler nothing to fuse; calling it costs more than it saves.
_MIN_NODES = 16

# What is left beside the repeated blocks is compiled as well, run by run, where that costs at most
# this many times what the blocks cost, in nodes; otherwise it runs eagerly.
_REST_COST = 2


@dataclass(frozen=True)
class Block:
    """One occurrence of a module in a graph.

    Attributes:
        nodes: what it computes, adjacent in the graph, in order.
        inputs: nodes before it that it reads (weights among them), in order of first use.
        outputs: its nodes that are read after it, in order.
        structure: equal for two blocks that compute the same function.
    """

    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    structure: Hashable


def outline(*stages: fx.GraphModule) -> list[fx.GraphModule]:
    """Rewrite stages so that every occurrence of a repeated block is a child of its own.

    Args:
        stages: of one denoiser, together, because a block may be repeated in another stage; nodes
            carry `meta["val"]` and `meta["nn_module_stack"]`.
    """
    after = [clone(stage) for stage in stages]
    repeated = choose([block for stage in after for block in blocks(stage.graph)])
    spare = rest([stage.graph for stage in after], repeated)
    for stage in after:
        own = [b for b in (*repeated, *spare) if b.nodes[0].graph is stage.graph]
        _rewrite(stage, own)
    return after


def _rewrite(stage: fx.GraphModule, chosen: Sequence[Block]) -> None:
    moved: dict[fx.Node, fx.Node] = {}
    children = [_child(stage, block) for block in chosen]  # all, before any is rewritten
    for i, (block, child) in enumerate(zip(chosen, children, strict=True)):
        stage.add_submodule(f"block{i}", child)
        _call(stage.graph, block, f"block{i}", moved)
    stage.graph.eliminate_dead_code(lambda node: node.op != "get_attr")  # weights of the children
    stage.recompile()


def choose(found: Sequence[Block]) -> list[Block]:
    """Choose among nested and overlapping blocks.

    A structure of n nodes found c times saves the compiler (c - 1) n nodes and costs it n: those
    that gain most come first, of equals the largest.
    """
    groups: dict[Hashable, list[Block]] = defaultdict(list)
    for block in found:
        groups[block.structure].append(block)

    def gain(blocks: Sequence[Block]) -> tuple[int, int]:
        size = len(blocks[0].nodes)
        return (len(blocks) - 2) * size, size

    taken: set[fx.Node] = set()
    chosen: list[Block] = []
    for group in sorted(groups.values(), key=gain, reverse=True):
        free = [b for b in group if taken.isdisjoint(b.nodes)]
        if len(free) > 1:
            chosen += free
            taken.update(n for b in free for n in b.nodes)
    return chosen


def rest(graphs: Sequence[fx.Graph], repeated: Sequence[Block]) -> list[Block]:
    """What lies between the repeated blocks, if it is cheap to compile beside them."""
    taken = {n for block in repeated for n in block.nodes}
    runs = [
        list(run)
        for graph in graphs
        for free, run in groupby(_computing(graph), lambda n: n not in taken)
        if free
    ]
    distinct = {block.structure: len(block.nodes) for block in repeated}
    if sum(len(run) for run in runs) > _REST_COST * sum(distinct.values()):
        return []
    return [_block(run) for run in runs if len(run) >= _MIN_NODES]


def _computing(graph: fx.Graph) -> list[fx.Node]:
    return [n for n in graph.nodes if n.op == "call_function"]


def blocks(graph: fx.Graph) -> Iterator[Block]:
    """Every module of the denoiser that became adjacent nodes, however deep it was nested."""
    compute = _computing(graph)
    position = {n: i for i, n in enumerate(compute)}
    by_path: dict[str, list[fx.Node]] = defaultdict(list)
    for node in compute:
        for path in _paths(node):
            by_path[path].append(node)
    seen: set[tuple[fx.Node, fx.Node]] = set()  # a module that only wraps another one is the same
    for nodes in by_path.values():
        first, last = position[nodes[0]], position[nodes[-1]]
        ends = (nodes[0], nodes[-1])
        if len(nodes) < _MIN_NODES or last - first + 1 != len(nodes) or ends in seen:
            continue
        seen.add(ends)
        yield _block(nodes)


def _paths(node: fx.Node) -> list[str]:
    return [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]


def _block(nodes: Sequence[fx.Node]) -> Block:
    inside = {n: i for i, n in enumerate(nodes)}
    inputs: dict[fx.Node, int] = {}

    def of(arg: fx.Node) -> str:
        if arg in inside:
            return f"%n{inside[arg]}"
        return f"%x{inputs.setdefault(arg, len(inputs))}"

    rows = tuple((n.target, str(map_arg((n.args, n.kwargs), of))) for n in nodes)
    outputs = tuple(n for n in nodes if any(u not in inside for u in n.users))
    shapes = tuple(_shape(n) for n in inputs)
    structure = (rows, shapes, tuple(inside[n] for n in outputs))
    return Block(tuple(nodes), tuple(inputs), outputs, structure)


def _shape(node: fx.Node) -> Hashable:
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        weight = node.op == "get_attr"
        return weight, tuple(value.shape), value.stride(), value.dtype, str(value.device)
    return node.name  # not a tensor: never the same as another


def _child(stage: fx.GraphModule, block: Block) -> fx.GraphModule:
    """A block as a graph `(x0, x1, ...) -> y` or `-> (y0, ...)`; equal blocks get equal code."""
    graph, env = fx.Graph(), {}
    for i, node in enumerate(n for n in block.inputs if n.op != "get_attr"):
        env[node] = graph.placeholder(f"x{i}")
        env[node].meta = {"val": node.meta["val"]}
    for node in block.inputs:
        if node.op == "get_attr":
            env[node] = graph.node_copy(node)
    for i, node in enumerate(block.nodes):
        args, kwargs = map_arg((node.args, node.kwargs), env.__getitem__)
        env[node] = graph.create_node(node.op, node.target, args, kwargs, name=f"n{i}")
    returned = tuple(env[n] for n in block.outputs)
    graph.output(returned[0] if len(returned) == 1 else returned)
    return fx.GraphModule(stage, graph, class_name="Block")


def _call(graph: fx.Graph, block: Block, name: str, moved: dict[fx.Node, fx.Node]) -> None:
    """Replace a block's nodes by one call, in place; `moved` tells what stands for its outputs."""
    with graph.inserting_after(block.nodes[-1]):
        inputs = tuple(moved.get(n, n) for n in block.inputs if n.op != "get_attr")
        call = graph.create_node("call_module", name, inputs)
    values = [n.meta["val"] for n in block.outputs]
    call.meta = {"val": tuple(values) if len(values) > 1 else values[0]}
    for i, node in reversed(list(enumerate(block.outputs))):
        moved[node] = call
        if len(values) > 1:
            with graph.inserting_after(call):
                moved[node] = graph.call_function(operator.getitem, (call, i))
            moved[node].meta = {"val": node.meta["val"]}
        node.replace_all_uses_with(moved[node], delete_user_cb=lambda u: u not in block.nodes)
    for node in reversed(block.nodes):
        graph.erase_node(node)
