"""The JSON of a rank's programs: those kinds of nodes and children that the writer emits."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, Self, TypeVar

import torch
from pydantic import Discriminator, Field, StringConstraints, Tag, TypeAdapter, model_validator

from hybridiff_compile.package.schema import (
    Device,
    Dtype,
    Label,
    Name,
    Names,
    Rank,
    Record,
    Shape,
    Size,
    Stride,
    Tensor,
    check_layout,
)

T = TypeVar("T")
#: Nodes of a graph, children of it, values of a tuple: more than any denoiser has.
_Many = Field(max_length=10_000)


class Ref(Record):
    """An earlier node of the same graph."""

    node: Name


class DtypeOf(Record):
    """A dtype as an argument."""

    dtype: Dtype


class DeviceOf(Record):
    """A device as an argument."""

    device: Device


class Tensors(Record):
    """What a stage, or a buffer that is opened, gives: a tuple of tensors."""

    items: Annotated[tuple[Tensor, ...], _Many] = Field(alias="tuple")


class Args(Record, Generic[T]):
    """The arguments of a node."""

    items: T = Field(alias="tuple")


class Returned(Record):
    """What a graph returns, by name."""

    values: Annotated[dict[Name, Ref], _Many] = Field(alias="dict")


_LinkTag = Annotated[int, Field(ge=0, lt=1 << 20)]
_Group = Annotated[str, StringConstraints(pattern=r"^(data|stamp)(0to1|1to0)$")]
_Phase = Annotated[int, Field(ge=0, le=15)]


class _Node(Record):
    name: Name


class Placeholder(_Node):
    """An input."""

    op: Literal["placeholder"]
    target: Name
    args: Args[tuple[()]]
    value: Tensor


class Module(_Node):
    """A call of a child, with values in the order of its arguments."""

    op: Literal["call_module"]
    target: Name
    args: Args[Annotated[tuple[Ref, ...], _Many]]
    value: Tensor | Tensors


class _Function(_Node):
    op: Literal["call_function"]
    value: Tensor


class Send(_Function):
    """`ops.send`: (value, destination, tag, group)."""

    target: Literal["send"]
    args: Args[tuple[Ref, Rank, _LinkTag, _Group]]


class Recv(_Function):
    """`ops.recv`: (size, dtype, device, source, tag, group)."""

    target: Literal["recv"]
    args: Args[
        tuple[
            Annotated[list[Size], Field(max_length=16)], DtypeOf, DeviceOf, Rank, _LinkTag, _Group
        ]
    ]


class Wait(_Function):
    """`ops.wait`: (value,)."""

    target: Literal["wait"]
    args: Args[tuple[Ref]]


class Guard(_Function):
    """`ops.guard`: (own stamp, peer's stamp, phase, source)."""

    target: Literal["guard"]
    args: Args[tuple[Ref, Ref, _Phase, Rank]]


class Cat(_Function):
    """`torch.cat` along dim 0: (values,)."""

    target: Literal["cat"]
    args: Args[tuple[Annotated[list[Ref], Field(min_length=1, max_length=100)]]]


class Output(_Node):
    """What a graph returns."""

    op: Literal["output"]
    target: Literal["output"]
    args: Args[tuple[Returned]]
    value: None


def _kind(node: Any) -> str:
    """Which of the kinds a node is: the function that it calls, or else its op."""
    if not isinstance(node, dict):
        return "none"
    return str(node.get("target" if node.get("op") == "call_function" else "op"))


Node = Annotated[
    Annotated[Placeholder, Tag("placeholder")]
    | Annotated[Module, Tag("call_module")]
    | Annotated[Output, Tag("output")]
    | Annotated[Send, Tag("send")]
    | Annotated[Recv, Tag("recv")]
    | Annotated[Wait, Tag("wait")]
    | Annotated[Guard, Tag("guard")]
    | Annotated[Cat, Tag("cat")],
    Discriminator(
        _kind,
        custom_error_type="node",
        custom_error_message="this is no kind of node, and no function, that a step has",
    ),
]


class Stage(Record):
    """A compiled part in a file of its own.

    Attributes:
        file: in the package's folder.
        weights: names of the weights that it reads.
        keys: None if it gives a tuple, "" for one tensor.
    """

    kind: Literal["stage"]
    file: Annotated[str, StringConstraints(pattern=r"^[0-9]+-[a-z0-9_]+\.[a-z0-9]+$")]
    weights: Annotated[tuple[Label, ...], Field(max_length=1_000_000)]
    keys: Literal[""] | None


class Slot(Record):
    """One tensor in a buffer; see `layout.Slot`."""

    offset: Annotated[int, Field(ge=0, lt=1 << 40)]
    shape: Shape
    stride: Stride
    dtype: Dtype

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_layout(self.shape, self.stride)
        return self

    def empty(self) -> torch.Tensor:
        """A tensor of that shape on the meta device: it takes no memory."""
        dtype = getattr(torch, self.dtype)
        return torch.empty_strided(self.shape, self.stride, dtype=dtype, device="meta")


class Buffer(Record):
    """The packing, or the opening, of a buffer that crosses between ranks."""

    kind: Literal["pack", "unpack"]
    slots: Annotated[tuple[Slot, ...], Field(min_length=1, max_length=10_000)]
    nbytes: Annotated[int, Field(ge=0, lt=1 << 40)]


class Contract(Record):
    """A `RankContract` whose imports and exports are links already."""

    inputs: Names
    state: Names
    imports: tuple[()]
    results: Names
    new_state: Names
    exports: tuple[()]


class Program(Record):
    """One rank's graph for one phase."""

    contract: Contract
    nodes: Annotated[list[Node], Field(min_length=1, max_length=10_000)]
    children: Annotated[dict[Name, Annotated[Stage | Buffer, Field(discriminator="kind")]], _Many]


PhaseName = Literal["SERIAL", "PIPELINED", "GUIDED_U", "GUIDED_C", "DRAINED"]
Programs = dict[PhaseName, Program]
#: A rank's file: for each call of the manifest, its programs by phase.
RANK_FILE: TypeAdapter[list[Programs]] = TypeAdapter(list[Programs])
