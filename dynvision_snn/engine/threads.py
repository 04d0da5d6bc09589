"""Work shared out to threads: compiled kernels release the interpreter's lock.

Numba's own threading layers abort the process when two threads enter them, or after a fork.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch


def in_parallel(work: Callable[[int, int], None], size: int, cost: float, of: int = 1) -> None:
    """``work(start, stop)`` on shares of ``range(size)``, on as many threads as pay off.

    Args:
        work: what may run in several threads at once, on disjoint shares.
        size: what is shared out.
        cost: how many threads' starts the whole is worth; torch's number of threads is the most.
        of: what the size of a share is a multiple of.
    """
    shares = max(1, min(torch.get_num_threads(), int(cost)))
    step = max(1, -(-size // (shares * of))) * of
    starts = range(0, size, step)
    if len(starts) <= 1:
        work(0, size)
        return
    pool = _pool(os.getpid(), len(starts) - 1)
    rest = [pool.submit(work, start, min(start + step, size)) for start in starts[1:]]
    work(0, step)
    for share in rest:
        share.result()


@cache
def _pool(process: int, n_threads: int) -> ThreadPoolExecutor:
    """Threads of this process: after a fork, the parent's are not there."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix=f"dynvision-scan-{process}")
