"""Dense products by oneDNN, against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dynvision_snn.engine.products import dense

pytestmark = pytest.mark.skipif(dense._onednn() is None, reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def used(monkeypatch):
    """Every product by oneDNN, whatever the processor and the size; how many were."""
    product, calls = dense._onednn(), []

    def noting(x, weight, bias):
        calls.append(x.shape)
        return product(x, weight, bias)

    monkeypatch.setattr(dense, "_WORTH", 1)
    monkeypatch.setattr(dense, "_mkl_is_slow", lambda: True)
    monkeypatch.setattr(dense, "_onednn", lambda: noting)
    return calls


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("rows", "features", "units"), [(1, 1, 1), (64, 5, 3), (300, 784, 10), (17, 256, 256)]
)
def test_a_layer_and_its_gradients(rows, features, units, bias, used):
    generator = torch.Generator().manual_seed(0)
    drawn = [
        torch.randn(*shape, generator=generator).requires_grad_()
        for shape in ((rows, features), (units, features), (units,))[: 3 if bias else 2]
    ]
    exact = [value.detach().double().requires_grad_() for value in drawn]
    ours = dense.linear(*drawn, *([] if bias else [None]))
    theirs = F.linear(*exact)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5 * features**0.5)
    g = torch.randn(rows, units, generator=generator)
    ours.backward(g)
    theirs.backward(g.double())
    for mine, other in zip(drawn, exact, strict=True):
        scale = float(other.grad.abs().max())
        assert float((mine.grad.double() - other.grad).abs().max()) <= 1e-5 * scale
    assert len(used) == 3


def test_only_wanted_gradients_are_computed(used):
    x, weight = torch.ones(4, 3), nn.Parameter(torch.ones(2, 3))
    dense.linear(x, weight, None).sum().backward()
    assert len(used) == 2
    assert torch.equal(weight.grad, torch.full((2, 3), 4.0))
    x.requires_grad_()
    dense.linear(x, weight, None).sum().backward()
    assert len(used) == 5
    assert torch.equal(x.grad, torch.full((4, 3), 2.0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_spreads(value):
    a, b = torch.zeros(5, 4), torch.ones(4, 3)
    a[1, 2] = value
    b[0, 1] = value
    torch.testing.assert_close(dense.times(a, b), a @ b, equal_nan=True)


def test_torch_itself_multiplies_what_is_no_plain_float32_or_where_onednn_is_off(used):
    a, b = torch.randn(5, 4), torch.randn(4, 3)
    assert torch.equal(dense.times(a.double(), b.double()), a.double() @ b.double())
    with torch.autocast("cpu"):
        assert dense.times(a, b).dtype is torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=False):
        assert torch.equal(dense.times(a, b), a @ b)
    assert not used
    dense.times(a, b)
    assert used


def test_there_is_no_second_derivative():
    x, weight = torch.ones(4, 3, requires_grad=True), torch.ones(2, 3)
    (g,) = torch.autograd.grad(dense.linear(x, weight, None).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()
