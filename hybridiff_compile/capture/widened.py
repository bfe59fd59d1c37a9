"""What is rounded, computed in a wider precision, to tell what rows mean from how they are rounded.

In bfloat16 a batch and its halves may differ by a hundredth from rounding alone, and rows that
depend on each other need not differ by more. In float32 the first is a millionth.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

HALF = (torch.float16, torch.bfloat16)


class Widened(TorchFunctionMode):
    """Within this, what would be computed in narrower precision is computed in a wider one.

    Weights are widened where they are read, each for one function, so that no second copy of a
    model is made. Raises NotImplementedError for a function that writes into what is narrower.

    Args:
        to: float32, for what is in half precision; or float64, for that and what is in float32.
    """

    def __init__(self, to: torch.dtype = torch.float32) -> None:
        super().__init__()
        self._to = to
        self._narrower = HALF if to == torch.float32 else (*HALF, torch.float32)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one function on widened values."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":  # an attribute
            return func(*args, **kwargs)
        wider = pytree.tree_map(self._wider, (args, kwargs))
        written = [*args[:1], kwargs.get("out")] if _writes(name) else [kwargs.get("out")]
        if any(self._wider(x) is not x for x in pytree.tree_leaves(written)):
            raise NotImplementedError(f"{name} writes into what is not {self._to}")
        return func(*wider[0], **wider[1])

    def _wider(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.dtype in self._narrower:
            return value.to(self._to)
        is_narrower = isinstance(value, torch.dtype) and value in self._narrower
        return self._to if is_narrower else value


def _writes(name: str) -> bool:
    """By torch's rule for names; a value that is widened is a copy, and the write would be lost."""
    return name in ("__set__", "__setitem__") or (name.endswith("_") and name[-2:] != "__")
