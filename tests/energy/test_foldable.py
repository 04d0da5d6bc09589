"""Average pooling and batch normalisation against what the layers make of each unit alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from dynvision_snn.energy.foldable import is_foldable
from dynvision_snn.energy.synapses import dense_synops, fan_out

POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
ADAPTIVE = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


def reached_one_by_one(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """How many outputs each unit alone changes."""
    units = math.prod(shape)
    alone = torch.eye(units, dtype=torch.float64).reshape(units, *shape)
    with torch.no_grad():
        changed = module(alone).ne(module(torch.zeros_like(alone)))
    return changed.flatten(1).sum(1).double().reshape(shape)


def check_fan_out(module: nn.Module, shape: tuple[int, ...]) -> None:
    expected = reached_one_by_one(module, shape)
    assert torch.equal(fan_out(module, shape), expected)
    assert dense_synops(module, shape) == int(expected.sum())


@given(st.data())
def test_average_pooling(data: st.DataObject) -> None:
    axes = data.draw(st.integers(1, 3))
    size = tuple(data.draw(st.integers(1, {1: 9, 2: 6, 3: 4}[axes])) for _ in range(axes))
    kernel = tuple(data.draw(st.integers(1, 3)) for _ in range(axes))
    stride = tuple(data.draw(st.integers(1, 3)) for _ in range(axes))
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    ceil, include = data.draw(st.booleans()), data.draw(st.booleans())
    assume(all(n >= k for n, k in zip(size, kernel, strict=True)))  # AvgPool3d asks for it
    if axes == 1:
        kernel, stride, padding = kernel[0], stride[0], padding[0]
    pool = POOLS[axes](kernel, stride, padding, ceil_mode=ceil, count_include_pad=include)
    check_fan_out(pool, (2, *size))


@given(st.data())
def test_adaptive_average_pooling(data: st.DataObject) -> None:
    axes = data.draw(st.integers(1, 3))
    size = tuple(data.draw(st.integers(1, 6)) for _ in range(axes))
    wanted = tuple(data.draw(st.integers(1, 4)) for _ in range(axes))
    check_fan_out(ADAPTIVE[axes](wanted if axes > 1 else wanted[0]), (2, *size))


def test_adaptive_pooling_that_keeps_an_axis() -> None:
    check_fan_out(nn.AdaptiveAvgPool2d((None, 2)), (2, 3, 5))


@pytest.mark.parametrize(("norm", "shape"), [(nn.BatchNorm1d, (3,)), (nn.BatchNorm2d, (3, 2, 4))])
def test_batch_normalisation(norm: type[nn.Module], shape: tuple[int, ...]) -> None:
    layer = norm(3).eval().double()
    check_fan_out(layer, shape)
    with torch.no_grad():
        layer.weight[1] = 0
    expected = torch.ones(shape, dtype=torch.float64)
    expected[1] = 0
    assert torch.equal(fan_out(layer, shape), expected)
    check_fan_out_of_plain = norm(3, affine=False).eval().double()
    check_fan_out(check_fan_out_of_plain, shape)


def test_the_check_can_fail() -> None:
    with pytest.raises(AssertionError):
        check_fan_out_wrong(nn.AvgPool1d(2), (1, 4))


def check_fan_out_wrong(module: nn.Module, shape: tuple[int, ...]) -> None:
    assert torch.equal(fan_out(nn.AvgPool1d(1), shape) + 1, reached_one_by_one(module, shape))


def test_a_forward_of_its_own_is_not_foldable() -> None:
    class Own(nn.AvgPool2d):
        def forward(self, x: Tensor) -> Tensor:
            return x

    assert not is_foldable(Own(2))
    assert not is_foldable(nn.LayerNorm(3))
