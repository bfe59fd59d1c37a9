"""Which device each rank computes on."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from hybridiff_compile.errors import ConfigError
from hybridiff_compile.runtime import torchrun


def ranks(
    device: torch.device, gpus: int, given: Sequence[str | torch.device] | None = None
) -> list[torch.device]:
    """The device of each rank; that of the pipeline is rank 0's.

    Under a launcher every rank names its own, and the others in this list are not looked at.

    Args:
        device: the pipeline's.
        gpus: number of ranks.
        given: devices that the caller asked for, one a rank; None takes those after the pipeline's.

    Raises:
        ConfigError: there are fewer, or the given ones are no such devices.
    """
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"the pipeline is on {device}; move it to the CPU or to a CUDA device.")
    if torchrun.world_size() not in (1, gpus):
        raise ConfigError(
            f"gpus={gpus}, but the launcher started {torchrun.world_size()} ranks; make them equal."
        )
    count = torch.cuda.device_count() if device.type == "cuda" else len(os.sched_getaffinity(0))
    if given is not None:
        return _given(device, gpus, _parsed(given), count)
    if gpus > count:
        check = "; to check results on one GPU, name it twice in devices=(...)"
        raise ConfigError(
            f"gpus={gpus}, but this machine has {count} {device.type} device(s) (a CPU device is "
            f"one core); lower gpus{check if device.type == 'cuda' else ''}."
        )
    if device.type == "cpu":
        return [device] * gpus
    first = device.index or 0
    return [torch.device("cuda", (first + rank) % count) for rank in range(gpus)]


def _parsed(given: Sequence[str | torch.device]) -> list[torch.device]:
    try:
        if isinstance(given, str):
            raise RuntimeError("one name a rank, in a tuple")
        return [torch.device(d) for d in given]
    except (RuntimeError, TypeError) as e:
        why = str(e).partition("\n")[0]
        raise ConfigError(f"devices={given!r} names no devices: {why.rstrip('.')}.") from e


def _given(
    device: torch.device, gpus: int, given: list[torch.device], count: int
) -> list[torch.device]:
    """The devices that the caller asked for, with their indices."""
    ranks = [torch.device("cuda", d.index or 0) if d.type == "cuda" else d for d in given]
    names = ", ".join(map(str, given))
    if torchrun.world_size() > 1:
        raise ConfigError(
            f"devices=({names}), but the launcher started the ranks: each computes where its own "
            "pipeline is; drop devices."
        )
    if len(ranks) != gpus or ranks[0] != device:
        raise ConfigError(
            f"devices=({names}) must name {gpus} device(s), one a rank, and first {device}, where "
            "the pipeline is."
        )
    for rank in ranks:
        if rank.type != device.type or (rank.index or 0) >= count:
            raise ConfigError(
                f"devices=({names}): this machine has {count} {device.type} device(s), and {rank} "
                "is none of them."
            )
    return ranks
