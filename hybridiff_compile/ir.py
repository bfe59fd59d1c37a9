"""The types that flow from capture through the passes and the lowering to the runtime."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx, nn


class Phase(enum.IntEnum):
    """What the ranks do at one step.

    SERIAL: rank b runs the whole denoiser on branch b (paper Sec. 4.1; exact).
    PIPELINED: rank n runs stage n only, on features of the previous step (paper Sec. 4.2). In mode
        "asyncdiff" of both branches in one batch, which rank 0 alone computes when SERIAL.
    GUIDED_U, GUIDED_C: rank 0 runs stage0 on that branch, rank 1 runs stage1 on the features, time
        and embeddings of the step before: one branch's exact prediction, one step late.
    FORECAST: no rank runs anything; the driver extrapolates both branches. It has no program.
    DRAINED: the last PIPELINED step. Nothing would read its features, so rank 0 makes none.
    """

    SERIAL = 0
    PIPELINED = 1
    GUIDED_U = 2
    GUIDED_C = 3
    FORECAST = 4
    DRAINED = 5

    @property
    def kind(self) -> str:
        """What figures and reports count it as."""
        return "pipelined" if self in (Phase.DRAINED, *GUIDED) else self.name.lower()


#: The guided phases, by the branch that rank 0 works on, in the order of `BRANCHES`.
GUIDED = (Phase.GUIDED_U, Phase.GUIDED_C)


class Level(enum.IntEnum):
    """How far a step program has been rewritten; every pass needs one level and gives one."""

    CAPTURED = 0
    SPLIT = 1
    CUT = 2
    SKEWED = 3
    LINKED = 4
    GUARDED = 5


#: Two branches, as the batched call of classifier-free guidance orders them.
BRANCHES = ("u", "c")


def branch_names(count: int) -> tuple[str, ...]:
    """Names of the branches of a step: u and c if there are two, otherwise numbers."""
    return BRANCHES if count == len(BRANCHES) else tuple(str(i) for i in range(count))


@dataclass(frozen=True, slots=True)
class RankContract:
    """The calling convention of one rank's graph, by name.

    A graph's placeholders are `inputs`, then `state`, then `imports`, in that order; it returns a
    dict whose keys are `results`, `new_state` and `exports` (later also tokens).

    Attributes:
        inputs: values that the driver feeds whenever they change.
        state: values that this rank kept from its own previous step.
        imports: (name, rank that makes it); empty once link-ranks has put a receive in their place.
        results: what the pipeline reads; only on rank 0.
        new_state: what this rank keeps for its next step.
        exports: (name, rank that reads it); empty once link-ranks has put a send in their place.
    """

    inputs: tuple[str, ...]
    state: tuple[str, ...] = ()
    imports: tuple[tuple[str, int], ...] = ()
    results: tuple[str, ...] = ()
    new_state: tuple[str, ...] = ()
    exports: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        """Refuse a name that stands for two placeholders or two returned values."""
        for kind, names in (("placeholder", self.placeholders), ("returned value", self.returned)):
            if len(set(names)) != len(names):
                raise ValueError(f"{kind} names must be unique, got {names}")

    @property
    def placeholders(self) -> tuple[str, ...]:
        """Names of the graph's placeholders, in order."""
        return (*self.inputs, *self.state, *(name for name, _ in self.imports))

    @property
    def returned(self) -> tuple[str, ...]:
        """Keys of the dict that the graph returns, less the tokens of its sends."""
        return (*self.results, *self.new_state, *(name for name, _ in self.exports))


@dataclass(frozen=True)
class StepProgram:
    """One denoising step as a small FX graph around the denoiser: one graph, then one a rank.

    Attributes:
        phase: the phase that this program serves.
        level: how far it has been rewritten.
        graphs: one GraphModule before split-cfg, one per rank after it. Every node carries the
            FakeTensor (or tuple of them) that it produces in `meta["val"]`.
        contracts: the calling convention of each graph.
        parameters: names of the denoiser parameters that the ranks must cover between them.
    """

    phase: Phase
    level: Level
    graphs: tuple[fx.GraphModule, ...]
    contracts: tuple[RankContract, ...]
    parameters: frozenset[str]

    def __post_init__(self) -> None:
        """Refuse a program with more graphs than contracts, or the reverse."""
        if len(self.graphs) != len(self.contracts):
            raise ValueError(f"{len(self.graphs)} graphs but {len(self.contracts)} contracts")

    def __str__(self) -> str:
        """Each rank's program as Python that a person can read."""
        head = f"# {self.phase.name} program, level {self.level.name}, {len(self.graphs)} graph(s)"
        return "\n\n".join([head, *(format_graph(g, r) for r, g in enumerate(self.graphs))])


@dataclass(frozen=True)
class RankProgram:
    """One rank's part of a step program: what travels to its process.

    Attributes:
        specs: of every placeholder, a tensor on the meta device with its shape, strides and dtype.
    """

    phase: Phase
    rank: int
    contract: RankContract
    module: fx.GraphModule
    specs: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, program: StepProgram, rank: int) -> RankProgram:
        """Take one rank's part."""
        module = program.graphs[rank]
        placeholders = (n for n in module.graph.nodes if n.op == "placeholder")
        specs = {n.name: _meta(n.meta["val"]) for n in placeholders}
        return cls(program.phase, rank, program.contracts[rank], module, specs)


def _meta(value: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


@dataclass(frozen=True, slots=True)
class Shape:
    """Stands for a tensor where only its shape travels, to another process or into a package."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    on_cpu: bool

    @classmethod
    def of(cls, value: torch.Tensor) -> Shape:
        """Of a tensor, fake or real."""
        return cls(tuple(value.shape), value.stride(), value.dtype, value.device.type == "cpu")

    def empty(self) -> torch.Tensor:
        """A tensor of that shape: untouched memory on the CPU, none on the meta device."""
        device = "cpu" if self.on_cpu else "meta"
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device)


@dataclass(frozen=True)
class Variant:
    """One rank's runnable program for one phase.

    Attributes:
        call: takes the contract's placeholders in order, returns the dict of returned values.
    """

    phase: Phase
    contract: RankContract
    specs: Mapping[str, torch.Tensor]
    call: Callable[..., Mapping[str, torch.Tensor]]


def output_node(graph: fx.Graph) -> fx.Node:
    """Return the graph's output node."""
    return next(iter(reversed(graph.nodes)))


def returned_values(graph: fx.Graph) -> dict[str, fx.Node]:
    """Return the dict of nodes that a step graph returns, as a copy."""
    returned: Any = output_node(graph).args[0]
    return dict(returned)


class Parent(fx.GraphModule):
    """A graph module whose children have their code already.

    torch makes the code of all children again with that of their parent: seconds for a denoiser
    whose few-node step graph is rewritten a dozen times.
    """

    def _recompile_submodules(self) -> list[Any]:
        return []


class Leaf(nn.Module):
    """A module in a graph that is called as it is: no pass and no compiler looks into it.

    Attributes:
        told: what leaves of this process have met that their program did not foresee.
        LOST: ends what is told where it cannot be put back.
    """

    told: ClassVar[list[str]] = []
    LOST: ClassVar[str] = ", which cannot be put back: the picture under way is lost"


def has_leaf(module: nn.Module) -> bool:
    """Whether there is a leaf in a graph module, at any depth."""
    return any(isinstance(inner, Leaf) for inner in module.modules())


def clone(module: fx.GraphModule, name: str | None = None) -> fx.GraphModule:
    """Copy a graph module's graph, sharing its children: passes never edit their input.

    Args:
        module: to copy.
        name: of the copy's class; None keeps it.
    """
    graph, env = fx.Graph(), {}
    for node in module.graph.nodes:
        env[node] = graph.node_copy(node, env.__getitem__)
    return Parent(module, graph, class_name=name or module.__class__.__name__)


def nbytes(value: Any) -> int:
    """Bytes of a tensor (fake or real) or of a tuple or list of them."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return sum(nbytes(v) for v in value) if isinstance(value, Sequence) else 0


def format_value(value: Any) -> str:
    """Short text for a node's value: `f32[1,4,32,32]`, or `12 tensors, 1.50 MB`."""
    if isinstance(value, torch.Tensor):
        kind = str(value.dtype).removeprefix("torch.").replace("float", "f").replace("int", "i")
        return f"{kind}[{','.join(str(s) for s in value.shape)}]"
    if isinstance(value, tuple | list):
        return f"{len(value)} tensors, {nbytes(value) / 1e6:.2f} MB"
    return "?"


def format_graph(module: fx.GraphModule, rank: int) -> str:
    """One rank's step graph as text, a line a node, each with the shape of what it makes."""
    lines = [f"rank {rank}:"]
    for node in module.graph.nodes:
        args = ", ".join(_format_arg(a) for a in (*node.args, *node.kwargs.values()))
        text = {
            "placeholder": f"{node.name} = input",
            "output": f"return {args}",
            "call_module": f"{node.name} = {node.target}({args})",
        }.get(node.op, f"{node.name} = {_target_name(node)}({args})")
        lines.append(
            f"    {text}"
            + ("" if node.op == "output" else f"  # {format_value(node.meta.get('val'))}")
        )
    return "\n".join(lines)


def _target_name(node: fx.Node) -> str:
    target = node.target
    return str(target) if not callable(target) else getattr(target, "__name__", str(target))


def _format_arg(arg: Any) -> str:
    if isinstance(arg, Mapping):
        return "{" + ", ".join(f"{k}: {_format_arg(v)}" for k, v in arg.items()) + "}"
    if isinstance(arg, list | tuple):
        return "[" + ", ".join(_format_arg(a) for a in arg) + "]"
    return str(arg)
