"""Products of spikes with weights: most spikes are 0, and what is 0 need not be multiplied."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from dynvision_snn.engine.products import dense as dense

# Multiplications of the dense product that make a look at its input worth it, and units below which
# a dense product is as fast.
_WORTH = 1 << 26
_FEW = 256

# The share of entries up to which a weight gradient alone is faster by sums over them.
_MOST_BACK = 0.1


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``, by the entries of `x` that are not 0 where they are few.

    Where they are not, or no compiler for the CPU is installed, it is a dense product. Sums are
    rounded in another order than in ``F.linear``.

    Args:
        x: ``[N, features]``.
        weight: ``[units, features]``.
        bias: ``[units]``.

    Returns:
        ``[N, units]``; without a second derivative where it is not ``F.linear``.

    >>> linear(torch.eye(2), torch.tensor([[1.0, 2.0]]), torch.tensor([0.5]))
    tensor([[1.5000],
            [2.5000]])
    """
    if x.ndim == weight.ndim == 2 and _worth(x, weight, len(weight)):
        by_entries = _loaded()
        found = None
        if by_entries is not None:
            found = by_entries.linear_by_entries(x, weight, bias, most(len(weight)))
        if found is not None:
            return found
    if x.ndim == weight.ndim == 2:
        return dense.linear(x, weight, bias)
    return F.linear(x, weight, bias)


def most(units: int) -> float:
    """The share of entries up to which a layer of so many units is faster by sums over them.

    Each entry costs a row of additions, and each input a look, whether it is 0 or not; the two
    numbers were fitted to where a layer and its weight gradient broke even with dense products
    (docs/engine.md has the table).

    >>> [round(most(units), 3) for units in (256, 512, 1000, 2000)]
    [0.036, 0.083, 0.106, 0.118]
    """
    return 0.13 - 24 / units


def weight_gradient(g: Tensor, x: Tensor) -> Tensor:
    """``g.t() @ x``, by the entries of `x` that are not 0 where they are few.

    Args:
        g: the gradient of what `x` led to, ``[N, units]``.
        x: ``[N, features]``.

    Returns:
        ``[units, features]``, without a graph.

    >>> weight_gradient(torch.ones(2, 1), torch.eye(2))
    tensor([[1., 1.]])
    """
    if _worth(x, g, g.shape[1]) and g.is_contiguous():
        by_entries = _loaded()
        found = None
        if by_entries is not None:
            found = by_entries.weight_gradient_by_entries(g, x, _MOST_BACK)
        if found is not None:
            return found
    return dense.times(g.t(), x)


def _worth(x: Tensor, other: Tensor, units: int) -> bool:
    """Whether to look at the entries of `x`, whose dense product with `other` has `units`."""
    return (
        x.numel() * units >= _WORTH
        and units >= _FEW
        and x.is_contiguous()
        and x.dtype is other.dtype is torch.float32
        and x.device.type == other.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
    )


class _ByEntries(Protocol):
    """What `by_entries` offers."""

    linear_by_entries: Callable[[Tensor, Tensor, Tensor | None, float], Tensor | None]
    weight_gradient_by_entries: Callable[[Tensor, Tensor, float], Tensor | None]


@cache
def _loaded() -> _ByEntries | None:
    """What multiplies by entries, where numba is installed; it takes half a second to load."""
    if find_spec("numba") is None:
        return None
    return cast(_ByEntries, import_module("dynvision_snn.engine.products.by_entries"))
