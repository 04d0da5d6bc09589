"""Dense products on the CPU, by whichever of torch's two libraries is faster for them.

Torch multiplies float32 matrices by MKL, which leaves AVX-512 unused on AMD's processors; oneDNN,
which comes with torch as well, does not, and took half the time there (the table is in
docs/engine.md). Both compute in float32.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function, once_differentiable
from torch.nn import Parameter

_Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]

_PLAIN = frozenset((Tensor, Parameter))

# Multiplications from which on the way to oneDNN, some ten microseconds, is worth it.
_WORTH = 1 << 21


def times(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` for matrices of one dtype on one device, without a graph.

    >>> times(torch.eye(2), torch.tensor([[1.0], [2.0]]))
    tensor([[1.],
            [2.]])
    """
    product = _product_for(a, b)
    return a @ b if product is None else product(a, b.t(), None)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` for matrices.

    Args:
        x: ``[N, features]``.
        weight: ``[units, features]``.
        bias: ``[units]``.

    Returns:
        ``[N, units]``; without a second derivative where oneDNN computes it.
    """
    if _product_for(x, weight.t()) is None:
        return F.linear(x, weight, bias)
    product: Tensor = _Linear.apply(x, weight, bias)
    return product


class _Linear(Function):
    """A linear layer, its gradients by `times`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``[N, features]`` to ``[N, units]``."""
        ctx.save_for_backward(x, weight)
        product = _product_for(x, weight.t())
        assert product is not None
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of input, weight and bias."""
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            times(g, weight) if needs_x else None,
            times(g.t(), x) if needs_weight else None,
            g.sum(0) if needs_bias else None,
        )


def _product_for(a: Tensor, b: Tensor) -> _Product | None:
    """What multiplies ``a @ b`` faster than torch does by itself; None for nothing."""
    if (
        a.shape[0] * a.shape[1] * b.shape[1] < _WORTH
        or not {type(a), type(b)} <= _PLAIN
        or not a.dtype is b.dtype is torch.float32
        or not a.device.type == b.device.type == "cpu"
        or torch.is_autocast_enabled("cpu")
        or not torch.backends.mkldnn.enabled
        or not _mkl_is_slow()
    ):
        return None
    return _onednn()


@cache
def _mkl_is_slow() -> bool:
    """Whether MKL leaves AVX-512 unused."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkl.is_available():
        return False
    cpus = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (cpus.read_text() if cpus.exists() else platform.processor())


@cache
def _onednn() -> _Product | None:
    """A linear layer by oneDNN: the operation that torch's compiler makes of one."""
    if not torch.backends.mkldnn.is_available():
        return None
    try:
        operation = torch.ops.mkldnn._linear_pointwise.default
        operation(torch.ones(1, 1), torch.ones(1, 1), None, "none", [], "")
    except (AttributeError, RuntimeError):  # a torch without it, or with another form of it
        return None

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found: Tensor = operation(x, weight, bias, "none", [], "")
        return found

    return product
