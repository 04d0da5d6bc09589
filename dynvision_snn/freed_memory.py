"""Freed memory, kept for the next training step instead of given back to the system.

A run takes and frees blocks of a timestep, or by layer of many. Where they go back to the system
after each training step and are asked for anew in the next, it clears every page of them first,
which can take longer than what is computed in them. Of blocks larger than `LARGEST_BLOCK` that is
so whatever is done, so the engine makes none where it can run in stretches.
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

_MAPPED = 1 << 25
_KEPT = 1 << 28

LARGEST_BLOCK = _MAPPED - (1 << 16)
"""Bytes of the largest block that is used again: 32 MiB with what is needed to align it.

That is the largest that every version of glibc can be told to keep in its heap.
"""

# Numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

# By any of these glibc is told to learn nothing of its own.
_SETTINGS = ("trim_threshold", "mmap_threshold", "top_pad", "mmap_max")


@cache
def keep_freed_memory() -> None:
    """Lets glibc keep up to 256 MiB of freed memory, and blocks of up to 32 MiB in its heap.

    Of itself it keeps twice the largest block that it has seen freed, 64 MiB at most, and learns
    only of blocks that were too large for the free memory that it had: a process with 32 MiB of it
    in one piece, as steps of another engine leave behind, never does. So it is told (mallopt(3)).
    It is told once, and nothing where the user has set any threshold (``MALLOC_TRIM_THRESHOLD_``,
    ``GLIBC_TUNABLES``); other allocators are left alone.
    """
    if platform.libc_ver()[0] != "glibc" or _is_set_by_user():
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED)
    libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)


def _is_set_by_user() -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return any(
        f"MALLOC_{name.upper()}_" in os.environ or f"glibc.malloc.{name}=" in tunables
        for name in _SETTINGS
    )
