"""Sums of rows over lists of entries, compiled for the CPU.

Four rows are added at a time, one after the other: as many as the compiler can tell apart from the
sum, which then passes through the first cache once for all four.
"""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

import numpy as np

from dynvision_snn.jit import inner, outer


@inner
def add_listed(places, values, first, last, dense, n, left, total):
    """Adds the rows listed from `first` up to `last`, of `n` columns, from `left` on to `total`."""
    k = first
    while k + 4 <= last:
        row_a = dense[places[k] * n + left :]
        row_b = dense[places[k + 1] * n + left :]
        row_c = dense[places[k + 2] * n + left :]
        row_d = dense[places[k + 3] * n + left :]
        a, b, c, d = values[k], values[k + 1], values[k + 2], values[k + 3]
        for j in range(total.size):
            total[j] = (((total[j] + a * row_a[j]) + b * row_b[j]) + c * row_c[j]) + d * row_d[j]
        k += 4
    while k < last:
        row = dense[places[k] * n + left :]
        a = values[k]
        for j in range(total.size):
            total[j] = total[j] + a * row[j]
        k += 1


@outer
def add_product(heads, places, values, dense, out, n, start, stop, width):
    """Adds ``S @ dense`` to the rows ``start:stop`` of `out`, in blocks of `width` of `n` columns.

    The entries of row r of S are those from ``heads[r]`` up to ``heads[r + 1]``: `values` in the
    columns `places`.
    """
    for left in range(0, n, width):
        right = min(left + width, n)
        for r in range(start, stop):
            total = out[r * n + left : r * n + right]
            add_listed(places, values, heads[r], heads[r + 1], dense, n, left, total)


@outer
def count(x, counts, start, stop):
    """How many entries of each of the rows ``start:stop`` are not 0."""
    zero = np.float32(0)
    for r in range(start, stop):
        row = x[r]
        n = np.int32(0)
        for j in range(row.size):
            n += np.int32(row[j] != zero)
        counts[r] = n


@outer
def fill(x, heads, places, values, start, stop):
    """Lists the entries of the rows ``start:stop`` that are not 0, in order."""
    zero = np.float32(0)
    for r in range(start, stop):
        k = heads[r]
        last = heads[r + 1]
        row = x[r]
        j = 0
        while k < last:
            value = row[j]
            places[k] = j
            values[k] = value
            k += np.int64(value != zero)
            j += 1


@outer
def transpose(heads, places, values, start, stop, ends, places_t, values_t):
    """Lists the entries of the rows ``start:stop`` by column; the places are then rows.

    The lists lie where the entries of these rows lie. ``ends[c]`` is where those of column c begin,
    and is left being where they end.
    """
    for r in range(start, stop):
        for k in range(heads[r], heads[r + 1]):
            c = places[k]
            at = ends[c]
            places_t[at] = r
            values_t[at] = values[k]
            ends[c] = at + 1
