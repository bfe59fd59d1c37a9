"""One denoiser call of a pipeline: its arguments by name, and the parts of its batch."""

from __future__ import annotations

import enum
import functools
import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from hybridiff_compile.layout import dense_stride

#: What a capture is good for: every tensor's shape, strides, dtype and device, every constant.
Signature = tuple[Any, ...]

# Constants whose text tells them apart.
_PLAIN = (
    bool
    | int
    | float
    | complex
    | str
    | bytes
    | enum.Enum
    | np.generic
    | slice
    | range
    | None
    | torch.dtype
    | torch.device
    | torch.layout
    | torch.memory_format
)

#: Dimension of the rows of the batch by name of the argument; one that is not there has no rows.
Rows = Mapping[str, int]


@dataclass(frozen=True)
class DenoiserCall:
    """The arguments of one call, flattened.

    Attributes:
        names: readable name of each leaf, such as `added_cond_kwargs_time_ids`.
        leaves: tensors and constants, in the order of `names`; tensors fill their memory.
        spec: the tree that rebuilds (args, kwargs).
    """

    names: tuple[str, ...]
    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec

    @classmethod
    def of(
        cls, parameters: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> DenoiserCall:
        """Flatten a call; `parameters` are the denoiser's own that may be given by position."""
        # In the order of the parameters: the first one of a denoiser is its noisy picture.
        order = {name: i for i, name in enumerate(parameters)}
        ordered = sorted(kwargs, key=lambda name: order.get(name, len(order)))
        more = (f"argument_{i}" for i in range(len(parameters), len(args)))  # of *args
        given = dict(zip((*parameters, *more), args, strict=False))
        named = (given, {k: kwargs[k] for k in ordered})
        paths, spec = pytree.tree_flatten_with_path(named)
        # The first path entry tells positional from keyword arguments; it is not part of the name.
        names = list[str]()
        for path, _ in paths:
            name = "_".join(str(_key(k)) for k in path[1:])
            names.append(unused(name, names))
        return cls(tuple(names), tuple(_as_received(leaf) for _, leaf in paths), spec)

    @property
    def arguments(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """(positional arguments by name, keyword arguments), as they were given."""
        return pytree.tree_unflatten(self.leaves, self.spec)

    def given_to(self, function: Callable[..., Any]) -> Any:
        """What a function makes of the arguments, by position and by keyword as they were given."""
        positional, keyword = self.arguments
        return function(*positional.values(), **keyword)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensor arguments by name, in order; the first one is the noisy picture."""
        pairs = zip(self.names, self.leaves, strict=True)
        return {name: leaf for name, leaf in pairs if isinstance(leaf, torch.Tensor)}

    def signature(self) -> Signature:
        """What must stay the same for a captured program to serve another call."""
        return self._signature

    @functools.cached_property
    def _signature(self) -> Signature:
        def of(leaf: Any) -> Any:
            return _layout(leaf) if isinstance(leaf, torch.Tensor) else constant_text(leaf)

        return (self.names, tuple(of(leaf) for leaf in self.leaves), str(self.spec))

    def shapes(self) -> Signature:
        """The signature without the values of constants."""

        def of(leaf: Any) -> Any:
            return _layout(leaf) if isinstance(leaf, torch.Tensor) else type(leaf)

        return (self.names, tuple(of(leaf) for leaf in self.leaves))

    def opaque(self) -> str:
        """Why a program cannot hold an argument, as a user is told; "" if it can hold them all."""
        for name, leaf in zip(self.names, self.leaves, strict=True):
            if not isinstance(leaf, torch.Tensor | np.ndarray | _PLAIN):
                return (
                    f"its argument {name} is a {type(leaf).__name__}, which a program cannot hold; "
                    "it holds numbers and texts, and takes tensors"
                )
        return ""

    @property
    def rows(self) -> int:
        """The size of the batch: dim 0 of the noisy picture; 0 if there is none, or a list."""
        noisy = next(iter(self.tensors().values()), None)
        return 0 if noisy is None or noisy.dim() == 0 or self.is_listed else noisy.shape[0]

    @property
    def parts(self) -> int:
        """Into how many equal parts its rows are shared out; 1 where there is nothing to share."""
        return parts_of(self.rows)

    @property
    def is_listed(self) -> bool:
        """Whether the first argument is no tensor and holds some, each a picture of its own."""
        positional, keyword = self.arguments
        first = next(iter({**positional, **keyword}.values()), None)
        return not isinstance(first, torch.Tensor) and any(
            isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(first)
        )

    @property
    def wants_gradient(self) -> bool:
        """Whether its answer will be differentiated by an argument."""
        tensors = self.tensors().values()
        return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)

    def is_doubled(self) -> bool:
        """Whether the noisy picture has bit-equal parts, 2 or more, as `[uncond, cond]` has them.

        Waits for the device.
        """
        noisy = next(iter(self.tensors().values()), None)
        counts = [n for n in range(2, self.rows + 1) if self.rows % n == 0]
        if noisy is None:
            return False
        ways = (noisy.chunk(count) for count in counts)
        return any(all(torch.equal(first, other) for other in rest) for first, *rest in ways)

    def rows_by_shape(self) -> dict[str, int]:
        """Where the shapes suggest that rows are; see `capture.rows`, which looks closer."""
        ways = {name: row_dims(tensor, self.rows)[0] for name, tensor in self.tensors().items()}
        return {name: dim for name, dim in ways.items() if dim is not None}

    def branch(self, index: int, rows: Rows | None = None) -> DenoiserCall:
        """The call of one part of the batch: every tensor that has rows is cut in `parts`.

        Args:
            index: of the part.
            rows: where the rows of each argument are; None goes by the shapes.
        """
        rows = self.rows_by_shape() if rows is None else rows
        count = parts_in(self, rows)

        def part(name: str, leaf: Any) -> Any:
            if name not in rows:
                return leaf
            return _as_received(leaf.chunk(count, rows[name])[index])

        pairs = zip(self.names, self.leaves, strict=True)
        return DenoiserCall(self.names, tuple(part(n, leaf) for n, leaf in pairs), self.spec)

    def repeated(self, times: int, rows: Rows) -> DenoiserCall:
        """The call of a batch that is several times this one."""

        def wide(name: str, leaf: Any) -> Any:
            return _as_received(torch.cat([leaf] * times, rows[name])) if name in rows else leaf

        pairs = zip(self.names, self.leaves, strict=True)
        return DenoiserCall(self.names, tuple(wide(n, leaf) for n, leaf in pairs), self.spec)


def unused(name: str, used: Collection[str]) -> str:
    """A name that is not in use: `a_b` may be an argument, and what is in another one, `a`."""
    while name in used:
        name += "_"
    return name


def parts_of(rows: int) -> int:
    """Into how many equal parts rows are shared out: 2, or an odd number's least divisor.

    Three branches of one picture are 3 rows, of two pictures 6, which two ranks share best as
    halves.
    """
    return next((n for n in range(2, rows + 1) if rows % n == 0), 1)


def parts_in(call: DenoiserCall, rows: Rows) -> int:
    """The same of a call's rows, by where they are in its noisy picture, the first of them."""
    first = next(iter(rows.items()), None)
    return 1 if first is None else parts_of(call.tensors()[first[0]].shape[first[1]])


def constant_text(leaf: Any) -> str:
    """A text that is another one for another constant."""
    if isinstance(leaf, np.ndarray):  # numpy shortens its own text of a long one
        return f"array({leaf.dtype}, {leaf.shape}, {hashlib.sha256(leaf.tobytes()).hexdigest()})"
    return repr(leaf)


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device


def row_dims(tensor: torch.Tensor, rows: int) -> list[int | None]:
    """The dimensions of a tensor that may have the rows, the likeliest first; None is no dimension.

    A dim 0 that holds several times as many (the frames of each picture of a video) comes last:
    lengths of all kinds are even.
    """
    if not tensor.dim() or not rows:
        return [None]
    others = [dim for dim in range(1, tensor.dim()) if tensor.shape[dim] == rows]
    if tensor.shape[0] == rows:
        return [0, None, *others]
    multiple = [0] if tensor.shape[0] and tensor.shape[0] % rows == 0 else []
    return [*others, None, *multiple]


def _as_received(leaf: Any) -> Any:
    """Copy a tensor of gaps or overlaps, such as an expanded time: another rank gets a dense one.

    Both ranks then trace, compile and run for the same strides.
    """
    if isinstance(leaf, torch.Tensor) and dense_stride(leaf) != leaf.stride():
        return leaf.contiguous()
    return leaf


def _key(entry: Any) -> Any:
    return getattr(entry, "key", getattr(entry, "idx", entry))
