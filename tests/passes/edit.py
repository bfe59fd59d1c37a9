"""Break a program by hand."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from hybridiff_compile.ir import StepProgram, clone, output_node, returned_values


def copied(program: StepProgram) -> StepProgram:
    """A program whose graphs a test may break; values are copied so that they may be changed."""
    graphs = tuple(clone(module) for module in program.graphs)
    for module in graphs:
        for node in module.graph.nodes:
            node.meta = dict(node.meta)
    return replace(program, graphs=graphs)


def node(program: StepProgram, rank: int, name: str) -> fx.Node:
    return next(n for n in program.graphs[rank].graph.nodes if n.name == name)


def move(moved: fx.Node, before: fx.Node) -> None:
    before.prepend(moved)


def set_arg(changed: fx.Node, index: int, value: object) -> None:
    changed.update_arg(index, value)  # pyright: ignore[reportArgumentType]


def forget_result(program: StepProgram, rank: int, name: str) -> None:
    graph = program.graphs[rank].graph
    returned = returned_values(graph)
    del returned[name]
    output_node(graph).args = (returned,)
