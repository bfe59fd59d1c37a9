"""Give memory that was only needed while capturing or loading back to the system."""

from __future__ import annotations

import ctypes
import gc
import linecache
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def trim() -> None:
    """Collect garbage, and let the C allocator return what it holds free (glibc only).

    Tracing a large denoiser leaves hundreds of megabytes of freed memory in the allocator, and
    the source of every file that it passed through in `linecache`, which reads them again if asked.
    """
    linecache.clearcache()
    gc.collect()
    if sys.platform == "linux":
        release = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if release is not None:
            release(0)


@contextmanager
def uncollected() -> Iterator[None]:
    """Hold back the garbage collector, which takes a quarter of a capture's time, to the end."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.collect(0)  # all that was made meanwhile is of the youngest generation
        if was_on:
            gc.enable()
