"""A mapping that processes share becomes one process's own, in its place."""

from __future__ import annotations

import ctypes
import logging
import mmap
import os

import torch

logger = logging.getLogger(__name__)

_FIXED = 0x10  # MAP_FIXED, which Python's `mmap` does not name

_map = ctypes.CDLL(None, use_errno=True).mmap
_map.restype = ctypes.c_void_p
_map.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
    *(ctypes.c_int, ctypes.c_int, ctypes.c_long),
)


def keep_private(mapping: torch.UntypedStorage, handle: int) -> None:
    """Let no other process see what this one writes to a shared mapping of a file from now on.

    What was written stays, and so do the addresses: every tensor in it, an alias that somebody
    kept as well, is private with it. No memory is taken before something is written.

    Args:
        mapping: all of the file, from its begin.
        handle: of the file, open.
    """
    size, address = mapping.nbytes(), mapping.data_ptr()
    try:
        # Asks for the room first: a kernel that refuses it below may have unmapped what was there.
        mmap.mmap(handle, size, access=mmap.ACCESS_COPY).close()
        kind, access = mmap.MAP_PRIVATE | _FIXED, mmap.PROT_READ | mmap.PROT_WRITE
        if _map(address, size, access, kind, handle, 0) != address:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    except OSError as e:
        logger.warning(
            "the denoiser's weights stay in memory that forked processes share (%s): a write to "
            "them in one process is seen in the others",
            e,
        )
