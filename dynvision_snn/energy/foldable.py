"""Average pooling and batch normalisation: linear layers that could be folded into others.

Both are linear maps with known weights, so they have a fan-out like any synapse layer: an average
pooling connects each unit to every window it is part of, a batch normalisation in evaluation mode
connects each unit to itself, with the weight ``gamma / sqrt(variance + eps)``. Whether these
connections cost anything depends on the hardware: a deployed network has the normalisation folded
into the weights before it, and may have the pooling folded into the weights behind it. The meter
leaves the choice to a switch.

Not here: normalisations whose statistics are of the data they normalise (layer, group and instance
normalisation, and batch normalisation while it trains). They are more than a linear map, and no
weights can take them up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
FOLDABLE_CLASSES: tuple[type[nn.Module], ...] = (*_POOLS, *_ADAPTIVE, *_NORMS)
"""The module classes of this file, with their own forward."""


def is_foldable(module: nn.Module) -> bool:
    """Whether `module` is an average pooling or a batch normalisation, its forward unchanged.

    >>> is_foldable(nn.AvgPool2d(2)), is_foldable(nn.LayerNorm(3))
    (True, False)
    """
    known = next((cls for cls in FOLDABLE_CLASSES if isinstance(module, cls)), None)
    return known is not None and type(module).forward is known.forward


def uses_batch_statistics(module: nn.Module) -> bool:
    """Whether a batch normalisation now normalises by its own batch, and so is no linear map.

    >>> uses_batch_statistics(nn.BatchNorm1d(3)), uses_batch_statistics(nn.BatchNorm1d(3).eval())
    (True, False)
    """
    return isinstance(module, _NORMS) and (module.training or module.running_mean is None)


def foldable_fan_out(module: nn.Module, unit_shape: Sequence[int]) -> Tensor:
    """Connections of each input unit: float64 of `unit_shape`, ``[channels, *positions]``.

    >>> foldable_fan_out(nn.AvgPool1d(2, stride=1), (1, 4))
    tensor([[1., 2., 2., 1.]], dtype=torch.float64)
    """
    shape = tuple(unit_shape)
    if isinstance(module, _NORMS):
        if module.weight is None:
            return torch.ones(shape, dtype=torch.float64)
        reached = module.weight.ne(0).to(torch.float64)
        return reached.reshape(-1, *[1] * (len(shape) - 1)).expand(shape).clone()
    fan_out = torch.ones(shape, dtype=torch.float64)
    for axis, windows in enumerate(_windows_of(module, shape)):
        trailing = len(shape) - 1 - (1 + axis)
        fan_out = fan_out * windows.reshape(-1, *[1] * trailing)
    return fan_out


def foldable_dense(module: nn.Module, unit_shape: Sequence[int]) -> int:
    """Connections of one sample if no weight and no input were zero."""
    shape = tuple(unit_shape)
    if isinstance(module, _NORMS):
        return math.prod(shape)
    return shape[0] * math.prod(int(windows.sum()) for windows in _windows_of(module, shape))


def _windows_of(module: nn.Module, shape: tuple[int, ...]) -> list[Tensor]:
    """Per spatial axis, how many windows each position is in: int64."""
    sizes = shape[1:]

    def per_axis(value: int | tuple[int, ...]) -> tuple[int, ...]:
        return value if isinstance(value, tuple) else (value,) * len(sizes)

    if isinstance(module, _ADAPTIVE):
        wanted = module.output_size
        outs = wanted if isinstance(wanted, tuple | list) else (wanted,) * len(sizes)
        covered = []
        for size, out in zip(sizes, outs, strict=True):
            n = size if out is None else out
            covered.append(
                _covered(size, [(i * size // n, -(-(i + 1) * size // n)) for i in range(n)])
            )
        return covered
    assert isinstance(module, _POOLS)
    settings = (per_axis(module.kernel_size), per_axis(module.stride), per_axis(module.padding))
    covered = []
    for size, kernel, stride, padding in zip(sizes, *settings, strict=True):
        span = size + 2 * padding - kernel
        n = (-(-span // stride) if module.ceil_mode else span // stride) + 1
        if module.ceil_mode and (n - 1) * stride >= size + padding:
            n -= 1  # a window that would begin beyond the input and its left padding is dropped
        starts = [i * stride - padding for i in range(n)]
        covered.append(_covered(size, [(start, start + kernel) for start in starts]))
    return covered


def _covered(size: int, windows: Sequence[tuple[int, int]]) -> Tensor:
    """How many of the windows ``start:stop`` hold each of `size` positions."""
    counts = torch.zeros(size, dtype=torch.int64)
    for start, stop in windows:
        counts[max(start, 0) : max(stop, 0)] += 1
    return counts
