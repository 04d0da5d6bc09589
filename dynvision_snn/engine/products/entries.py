"""A matrix as the list of its entries that are not 0, and its products with dense matrices.

Every number is summed by one thread, in an order that does not depend on how many there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dynvision_snn.engine.products import kernels
from dynvision_snn.engine.threads import in_parallel

# Numbers that make a thread worth its start: looked at, and added.
_LOOKS = 1 << 18
_SUMS = 1 << 18
# Columns of a block, and rows whose entries are listed by column together: the rows of the dense
# matrix that they meet stay in cache.
_WIDTH = 1024
_CHUNK = 256
# Rows that are looked at before all are.
_SAMPLE = 16


@dataclass(frozen=True, eq=False, slots=True)
class Entries:
    """The entries of a float32 matrix on the CPU that are not 0, row by row.

    Attributes:
        heads: int64 ``[rows + 1]``; those of row r lie from ``heads[r]`` up to ``heads[r + 1]``.
        places: int32, their columns.
        values: float32.
        n_columns: how many columns the matrix has.
    """

    heads: Tensor
    places: Tensor
    values: Tensor
    n_columns: int

    def __matmul__(self, dense: Tensor) -> Tensor:
        """The product with a contiguous float32 ``[columns, n]``."""
        out = dense.new_zeros(len(self.heads) - 1, dense.shape[1])
        self.add_to(out, dense)
        return out

    def add_to(self, out: Tensor, dense: Tensor) -> None:
        """Adds the product with `dense`, ``[columns, n]``, to `out`, ``[rows, n]``."""
        lists = (self.heads.numpy(), self.places.numpy(), self.values.numpy())
        dense_, out_, n = dense.view(-1).numpy(), out.view(-1).numpy(), dense.shape[1]

        def share(start: int, stop: int) -> None:
            kernels.add_product(*lists, dense_, out_, n, start, stop, _WIDTH)

        in_parallel(share, len(out), len(self.values) * dense.shape[1] / _SUMS)

    def dense(self) -> Tensor:
        """The matrix itself, ``[rows, columns]``."""
        n_rows = len(self.heads) - 1
        rows = torch.arange(n_rows).repeat_interleave(self.heads.diff())
        whole = self.values.new_zeros(n_rows, self.n_columns)
        whole[rows, self.places.long()] = self.values
        return whole

    def transposed_times(self, dense: Tensor) -> Tensor:
        """The product of the transposed matrix with `dense`, ``[rows, n]``."""
        n_rows = len(self.heads) - 1
        starts = range(0, n_rows, _CHUNK)
        lists = (self.heads.numpy(), self.places.numpy(), self.values.numpy())
        heads = np.zeros((len(starts), self.n_columns + 1), np.int64)
        rows, values = (torch.empty_like(x).numpy() for x in (self.places, self.values))

        def turn(first: int, last: int) -> None:
            for k in range(first, last):
                start, stop = starts[k], min(starts[k] + _CHUNK, n_rows)
                begin, end = lists[0][start], lists[0][stop]
                in_column = np.bincount(lists[1][begin:end], minlength=self.n_columns)
                # Where each column's entries begin; the kernel leaves where they end.
                ends = heads[k, 1:]
                np.cumsum(in_column[:-1], out=ends[1:])
                heads[k] += begin
                kernels.transpose(*lists, start, stop, ends, rows, values)

        in_parallel(turn, len(starts), len(self.values) / _LOOKS)
        out = dense.new_zeros(self.n_columns, dense.shape[1])
        dense_, out_, n = dense.view(-1).numpy(), out.view(-1).numpy(), dense.shape[1]

        def share(start: int, stop: int) -> None:
            for k in range(len(starts)):
                kernels.add_product(heads[k], rows, values, dense_, out_, n, start, stop, _WIDTH)

        in_parallel(share, self.n_columns, len(self.values) * dense.shape[1] / _SUMS)
        return out


def entries_of(x: Tensor, most: float) -> Entries | None:
    """The entries of contiguous float32 ``[rows, columns]``; None where too many are not 0.

    Args:
        x: the matrix.
        most: the share of its entries that may differ from 0.

    >>> found = entries_of(torch.eye(3), most=0.5)
    >>> found @ torch.ones(3, 2)
    tensor([[1., 1.],
            [1., 1.],
            [1., 1.]])
    >>> entries_of(torch.ones(3, 3), most=0.5) is None
    True
    """
    n_rows, n_columns = x.shape
    sample = x[:: max(1, n_rows // _SAMPLE)]
    if int(sample.count_nonzero()) > 2 * most * sample.numel():
        return None
    x_ = x.numpy()
    counts = torch.empty(n_rows, dtype=torch.int64)
    worth = x.numel() / _LOOKS
    counts_ = counts.numpy()
    in_parallel(lambda start, stop: kernels.count(x_, counts_, start, stop), n_rows, worth)
    heads = torch.zeros(n_rows + 1, dtype=torch.int64)
    torch.cumsum(counts, 0, out=heads[1:])
    n_entries = int(heads[-1])
    if n_entries > most * x.numel():
        return None
    places, values = torch.empty(n_entries, dtype=torch.int32), x.new_empty(n_entries)
    lists = (heads.numpy(), places.numpy(), values.numpy())
    in_parallel(lambda start, stop: kernels.fill(x_, *lists, start, stop), n_rows, worth)
    return Entries(heads, places, values, n_columns)
