"""Freed memory, kept for the next training step instead of given back to the system.

A run by layer takes and frees blocks of many timesteps. Where they go back to the system after each
training step and are asked for anew in the next, it clears every page of them first, which can take
longer than what is computed in them. Of blocks larger than `LARGEST_BLOCK` that is so whatever is
done, so the engine makes none where it can run in stretches.
"""

from __future__ import annotations

import torch

LARGEST_BLOCK = (1 << 25) - (1 << 16)
"""Bytes of the largest block that glibc learns from: 32 MiB with what is needed to align it."""


def keep_freed_memory() -> None:
    """Lets glibc keep up to 64 MiB of freed memory, as in any process that once freed 32 MiB.

    It keeps twice the largest block that it has seen freed, up to this one (see mallopt(3),
    ``M_MMAP_THRESHOLD``), so such a block is shown to it. Nothing is written there, so that it
    takes no memory. Other allocators do with it what they like, and thresholds that the user has
    set (``MALLOC_TRIM_THRESHOLD_``) stay.
    """
    torch.empty(LARGEST_BLOCK, dtype=torch.uint8)
