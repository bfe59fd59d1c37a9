"""A package's weights in the place of a denoiser's own, and the own ones back again."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hybridiff_compile.errors import PackageError, UnsupportedPipelineError
from hybridiff_compile.layout import dense_stride

logger = logging.getLogger(__name__)

_Old = tuple[torch.Tensor, torch.Tensor]

#: Denoisers that hold a package's weights in the place of their own.
_exchanged: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def tensors_of(denoiser: nn.Module) -> dict[str, torch.Tensor]:
    """A denoiser's parameters and buffers, by every name that they have.

    Raises:
        UnsupportedPipelineError: one has no plain memory: it is quantized, or not loaded.
    """
    found = dict(_named(denoiser))
    for name, tensor in found.items():
        if tensor.is_meta:
            raise UnsupportedPipelineError(
                f"weight {name} is on the meta device: it is not loaded, or it is offloaded; pass "
                "a pipeline whose weights are loaded."
            )
        if tensor.is_quantized or is_traceable_wrapper_subclass(tensor):
            raise UnsupportedPipelineError(
                f"weight {name} is a quantized {type(tensor).__name__}; packages hold plain "
                "weights, so use a pipeline that is not quantized."
            )
    return found


def _named(denoiser: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from denoiser.named_parameters(remove_duplicate=False)
    yield from denoiser.named_buffers(remove_duplicate=False)


def exchange(
    folder: Path,
    denoiser: nn.Module,
    own: Mapping[str, torch.Tensor],
    stored: Mapping[str, torch.Tensor],
) -> Callable[[], None]:
    """Let a denoiser's tensors have other values; say once how many differ.

    The tensor objects stay, and so does the memory of what differs, for later: nothing is written.

    Args:
        folder: of the package.
        denoiser: whose tensors they are.
        own: those that the package has too, by name.
        stored: for the same names, of the same shapes and dtypes, with the strides to have.

    Returns:
        Gives each tensor that differed its own values and memory back. What has been moved or cast
        since gets them where, and as what, it now is.

    Raises:
        PackageError: the denoiser holds the weights of another package, which differ: whichever is
            restored last would leave those of the other.
    """
    old: dict[int, _Old] = {}
    differing = []

    def give_back() -> None:
        while old:
            _, (tensor, data) = old.popitem()
            _point(tensor, data.to(tensor.device, tensor.dtype))
            if not old:
                _exchanged.discard(denoiser)

    try:
        for name, tensor in own.items():
            new = stored[name].to(tensor.device)
            is_same = _same_bits(tensor, new)
            if is_same and dense_stride(tensor) == dense_stride(new) == tensor.stride():
                continue
            if not old:
                _claim(folder, denoiser, name)
            if not is_same and id(tensor) not in old:
                differing.append(name)
            old.setdefault(id(tensor), (tensor, tensor.data))
            _point(tensor, new)
    except BaseException:
        give_back()
        raise
    if differing:
        logger.warning(
            "%d of the %d weights of this pipeline's denoiser are not those of the package (the "
            "first is %s): the package's are used until restore()",
            len(differing),
            len({id(tensor) for tensor in own.values()}),
            differing[0],
        )
    return give_back


def _claim(folder: Path, denoiser: nn.Module, name: str) -> None:
    """Note that a denoiser gets a package's weights, of which that of this name is the first."""
    if denoiser in _exchanged:
        raise PackageError(
            f"{folder}: the denoiser holds the weights of another package, which was loaded into "
            f"a pipeline that shares it, and {name} of this package differs; call restore() on "
            "that model first."
        )
    _exchanged.add(denoiser)


def _point(tensor: torch.Tensor, data: torch.Tensor) -> None:
    with torch.inference_mode(tensor.is_inference()):  # it still says that it is one
        tensor.data = data


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of one shape and dtype have the same bits: -0 is not 0, NaN may be."""
    return torch.equal(*(t.detach().reshape(-1).view(torch.uint8) for t in (a, b)))
