"""Counts in one pass over memory, compiled for the CPU; `counting` chooses them.

Counting is bound by memory and by the number of operations that torch starts, so one pass that
finds everything is several times faster than the reductions of torch that find the same.

Values are looked at as the integers that hold their bits. Without the sign bit these are in the
order of the magnitudes, from 0 through the smallest ones to infinity, and NaN above it, so that
integer comparisons, which are quick, are exact for every value. Less one, and unsigned, zero
becomes the largest of all: the smallest is then that of the nonzero ones.
"""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dynvision_snn.jit import outer

# Units whose counters stay in the first cache while the batch runs through.
_BLOCK = 4096


@outer
def _count(bits, nonzero, sums):
    """Counts uint32 ``[T, B, U]`` into `nonzero`, ``[T, U]``, and `sums`, ``[3, T]``.

    Returns:
        How various the nonzero magnitudes of a timestep are: 0, all are 1; 1, all are the same; 2,
        they differ.
    """
    n_timesteps, batch_size, units = bits.shape
    magnitude = np.uint32(0x7FFFFFFF)
    infinity = np.uint32(0x7F800000)
    nothing = np.uint32(0)
    one = np.uint32(1)
    extremes = np.empty(2, np.uint32)
    counts = np.empty(min(units, _BLOCK), np.int32)
    various = 0
    for t in range(n_timesteps):
        largest = nothing
        smallest_less_one = np.uint32(0xFFFFFFFF)
        n_events = 0.0
        for start in range(0, units, _BLOCK):
            stop = min(start + _BLOCK, units)
            count = counts[: stop - start]
            count[:] = 0
            for b in range(batch_size):
                row = bits[t, b, start:stop]
                for u in range(count.size):
                    value = row[u] & magnitude
                    count[u] += np.int32(value != nothing)
                    largest = max(largest, value)
                    smallest_less_one = min(smallest_less_one, np.uint32(value - one))
            out = nonzero[t, start:stop]
            for u in range(count.size):
                out[u] = count[u]
                n_events += count[u]
        extremes[1] = largest
        if largest == nothing:
            extremes[0] = infinity
        elif largest > infinity:
            extremes[0] = largest
        else:
            extremes[0] = np.uint32(smallest_less_one + one)
        least, most = extremes.view(np.float32)
        sums[0, t] = n_events
        sums[1, t] = least
        sums[2, t] = most
        if largest == nothing:
            continue
        if least != most:
            various = 2
        elif most != np.float32(1):
            various = max(various, 1)
    return various


def count(values: Tensor) -> tuple[Tensor, Tensor, int]:
    """Counts nonzero values per unit, and finds the extremes.

    Args:
        values: float32 ``[T, B, *units]``, contiguous and on the CPU, without a graph.

    Returns:
        float64: nonzero values of the batch, ``[T, units]``; and those of all units, the smallest
        nonzero and the largest ``|x|``, ``[3, T]``, the last two NaN if any value is. And how
        various the magnitudes are, 0 to 2 as in the kernel.
    """
    bits = _bits(values)
    nonzero = np.empty((len(bits), bits.shape[2]))
    sums = np.empty((3, len(bits)))
    various = _count(bits, nonzero, sums)
    return torch.from_numpy(nonzero), torch.from_numpy(sums), various


@outer
def _ones(bits, counts):
    """Adds the ones of uint32 ``[T, B, U]`` to `counts`, ``[B]``.

    Returns:
        Whether there are zeros and ones alone; if not, `counts` means nothing.
    """
    nothing = np.uint32(0)
    one = np.uint32(0x3F800000)
    for t in range(bits.shape[0]):
        for b in range(bits.shape[1]):
            row = bits[t, b]
            n_ones = np.int32(0)
            n_others = np.int32(0)
            for u in range(row.size):
                value = row[u]
                n_ones += np.int32(value == one)
                n_others += np.int32((value != nothing) & (value != one))
            if n_others:
                return False
            counts[b] += n_ones
    return True


def ones(parts: Sequence[Tensor]) -> Tensor | None:
    """How many ones each sample holds, float64 ``[B]``; None where there are other values.

    Args:
        parts: float32 ``[T, B, *units]`` each, contiguous and on the CPU, without a graph.
    """
    counts = np.zeros(parts[0].shape[1])
    if all(_ones(_bits(part), counts) for part in parts):
        return torch.from_numpy(counts)
    return None


def _bits(values: Tensor) -> np.ndarray:
    array = values.numpy()
    return array.view(np.uint32).reshape(*array.shape[:2], -1)
