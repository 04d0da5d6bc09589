"""The surrogate derivatives of `SurrogateKind`, on tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from dynvision_snn.adapters.scan_spec import Surrogate, SurrogateKind

Slope = Callable[[Tensor, float, float], Tensor]


def slope(surrogate: Surrogate, x: Tensor) -> Tensor:
    """The derivative of a spike at ``x = v - threshold``, of the shape of `x`.

    >>> slope(Surrogate(SurrogateKind.FAST_SIGMOID, 1.0), torch.tensor([0.0, 1.0]))
    tensor([1.0000, 0.2500])
    """
    return _SLOPES[surrogate.kind](x, surrogate.a, surrogate.b)


def _sigmoid(x: Tensor, a: float, b: float) -> Tensor:
    # Written as snnTorch writes it: where exp overflows, its gradient is not a number either.
    e = torch.exp(-a * x)
    return a * e / (e + 1) ** 2


_SLOPES: Mapping[SurrogateKind, Slope] = {
    SurrogateKind.NONE: lambda x, a, b: torch.zeros_like(x),
    SurrogateKind.STRAIGHT_THROUGH: lambda x, a, b: torch.ones_like(x),
    SurrogateKind.HEAVISIDE: lambda x, a, b: (x > 0).to(x.dtype),
    SurrogateKind.ATAN: lambda x, a, b: a / 2 / (1 + (math.pi / 2 * a * x).square()),
    SurrogateKind.FAST_SIGMOID: lambda x, a, b: 1 / (a * x.abs() + 1).square(),
    SurrogateKind.SPARSE_SIGMOID: lambda x, a, b: (x > b) / (a * x.abs() + 1).square(),
    SurrogateKind.SIGMOID: _sigmoid,
    SurrogateKind.SIGN: lambda x, a, b: torch.where(x < 0, a, -a).to(x.dtype),
    SurrogateKind.RATE_ESCAPE: lambda x, a, b: b * torch.exp(-a * (x - 1).abs()),
    SurrogateKind.TRIANGLE: lambda x, a, b: a * torch.relu(1 - x.abs()),
    SurrogateKind.TANH: lambda x, a, b: 1 - (a * x).tanh().square(),
    SurrogateKind.CIRCLE: lambda x, a, b: (a / (a * a + x.square()).sqrt()).pow(3),
    SurrogateKind.ERFC: lambda x, a, b: 2 / math.sqrt(math.pi) * torch.exp(-(a * x).square()),
}
