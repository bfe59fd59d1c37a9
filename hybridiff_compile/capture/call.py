"""One denoiser call of a pipeline: is it guided, what are its branches, what does it return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from hybridiff_compile.errors import CaptureError, ConfigError
from hybridiff_compile.ir import BRANCHES
from hybridiff_compile.layout import dense_stride

#: What a capture is good for: every tensor's shape, strides, dtype and device, every constant.
Signature = tuple[Any, ...]


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
        """Flatten a call; `parameters` are the names of the denoiser's own, in order."""
        # In the order of the parameters: the first one of a denoiser is its noisy picture.
        order = {name: i for i, name in enumerate(parameters)}
        ordered = sorted(kwargs, key=lambda name: order.get(name, len(order)))
        named = (dict(zip(parameters, args, strict=False)), {k: kwargs[k] for k in ordered})
        paths, spec = pytree.tree_flatten_with_path(named)
        # The first path entry tells positional from keyword arguments; it is not part of the name.
        names = tuple("_".join(str(_key(k)) for k in path[1:]) for path, _ in paths)
        return cls(names, tuple(_as_received(leaf) for _, leaf in paths), spec)

    @property
    def arguments(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """(positional arguments by name, keyword arguments), as they were given."""
        return pytree.tree_unflatten(self.leaves, self.spec)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensor arguments by name, in order; the first one is the noisy picture."""
        pairs = zip(self.names, self.leaves, strict=True)
        return {name: leaf for name, leaf in pairs if isinstance(leaf, torch.Tensor)}

    def signature(self) -> Signature:
        """What must stay the same for a captured program to serve another call."""

        def of(leaf: Any) -> Any:
            if isinstance(leaf, torch.Tensor):
                return tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.device
            return repr(leaf)

        return (self.names, tuple(of(leaf) for leaf in self.leaves), str(self.spec))

    def is_guided(self, needed: bool = False) -> bool:
        """Whether both halves of the noisy picture are bit-equal: `[uncond, cond]` in one batch.

        Args:
            needed: by mode "asyncdiff", which has no other way to run a pipeline that guides.

        Raises:
            ConfigError: it is needed, and is not so.
        """
        noisy = next(iter(self.tensors().values()), None)
        halves = () if noisy is None or noisy.dim() == 0 else noisy.chunk(len(BRANCHES))
        same = len(halves) == len(BRANCHES) and torch.equal(*halves)
        if needed and not same:
            shape = None if noisy is None else tuple(noisy.shape)
            raise ConfigError(
                f"mode='asyncdiff' runs both branches in one batch, and this pipeline's call of "
                f"shape {shape} is no [uncond, cond] batch; use mode='exact' for it."
            )
        return same

    def branch(self, index: int) -> DenoiserCall:
        """The call of one branch: every tensor whose dim 0 is the doubled batch is sliced by B."""
        doubled = next(iter(self.tensors().values())).shape[0]
        size = doubled // len(BRANCHES)

        def cut(leaf: Any) -> Any:
            if isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == doubled:
                return leaf[index * size : (index + 1) * size]
            return leaf

        return DenoiserCall(self.names, tuple(cut(leaf) for leaf in self.leaves), self.spec)

    def inputs(self, shared: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """The inputs of a step program, by name.

        Args:
            shared: names that both branches have in common; of the others each has its own,
                `<name>_u` and `<name>_c`. Empty: the program takes the tensors of the whole batch.
        """
        if not shared:
            return self.tensors()
        values = {}
        for index, branch in enumerate(BRANCHES):
            for name, tensor in self.branch(index).tensors().items():
                values[name if name in shared else f"{name}_{branch}"] = tensor
        return values


def _as_received(leaf: Any) -> Any:
    """Copy a tensor of gaps or overlaps, such as an expanded time: another rank gets a dense one.

    Both ranks then trace, compile and run for the same strides.
    """
    if isinstance(leaf, torch.Tensor) and dense_stride(leaf) != leaf.stride():
        return leaf.contiguous()
    return leaf


def _key(entry: Any) -> Any:
    return getattr(entry, "key", getattr(entry, "idx", entry))


def only_tensor(output: Any, where: str) -> tuple[torch.Tensor, pytree.TreeSpec]:
    """The one tensor that a denoiser returns, and the tree around it.

    Raises:
        CaptureError: it returns none or several.
    """
    leaves, spec = pytree.tree_flatten(output)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    if len(tensors) != 1 or len(leaves) != 1:
        raise CaptureError(
            f"{where} returns {len(tensors)} tensors among {len(leaves)} values; a denoiser must "
            "return one prediction. Use gpus=1 for this pipeline."
        )
    return tensors[0], spec
