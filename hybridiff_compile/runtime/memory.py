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
def lightly_collected() -> Iterator[None]:
    """Within this, collect only garbage that is made within this.

    Looking through all that was imported, again and again, takes a quarter of a capture's time.
    With no collection at all, garbage lies between what is kept, in memory that is lost then.
    """
    thresholds, is_ours = gc.get_threshold(), gc.isenabled() and not gc.get_freeze_count()
    if is_ours:
        gc.freeze()
        gc.set_threshold(50_000, 5, 100)
    try:
        yield
    finally:
        if is_ours:
            gc.collect()  # here, and not in the steps that follow
            gc.set_threshold(*thresholds)
            gc.unfreeze()
