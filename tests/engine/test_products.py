"""Linear layers on spikes: sums over the entries that are not 0, against dense products."""

from __future__ import annotations

import copy

import norse.torch as norse
import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dynvision_snn as dvs
from dynvision_snn.energy import EnergyMeter
from dynvision_snn.engine import products
from dynvision_snn.losses import EnergyLoss

pytest.importorskip("numba")

from dynvision_snn.engine.products import by_entries
from dynvision_snn.engine.products.by_entries import linear_by_entries
from dynvision_snn.engine.products.entries import entries_of

MOST = 0.1


def drawn(rows, features, units, share, seed, *, bias=True, signed=False):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(rows, features, generator=generator) < share).float()
    if signed:
        x = x * torch.randn(rows, features, generator=generator)
    weight = torch.randn(units, features, generator=generator, requires_grad=True)
    b = torch.randn(units, generator=generator, requires_grad=True) if bias else None
    g = torch.randn(rows, units, generator=generator)
    return x.requires_grad_(), weight, b, g


@settings(max_examples=60, deadline=None)
@given(
    rows=st.sampled_from([1, 3, 255, 256, 257, 700]),
    features=st.integers(1, 70),
    units=st.sampled_from([1, 2, 5, 64, 1025]),
    share=st.sampled_from([0.0, 0.01, 0.05, 0.09]),
    bias=st.booleans(),
    signed=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_it_is_the_dense_product_with_its_gradients(
    rows, features, units, share, bias, signed, seed
):
    x, weight, b, g = drawn(rows, features, units, share, seed, bias=bias, signed=signed)
    if entries_of(x.detach(), MOST) is None:
        return
    found = linear_by_entries(x, weight, b, MOST)
    assert found is not None
    assert b is None or torch.equal(b, drawn(rows, features, units, share, seed, signed=signed)[2])
    found.backward(g)
    given_ = [t for t in (x, weight, b) if t is not None]
    exact = [t.detach().double().requires_grad_() for t in given_]
    expected = F.linear(exact[0], exact[1], exact[2] if bias else None)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    expected.backward(g.double())
    for ours, theirs in zip(given_, exact, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-3)


def test_gradients_lie_in_memory_as_torchs_do():
    x, weight, _, g = drawn(600, 300, 400, 0.05, 0, bias=False)
    (own,) = torch.autograd.grad(linear_by_entries(x, weight, None, MOST), weight, g)
    alone = by_entries.weight_gradient_by_entries(g, x.detach(), MOST)
    (theirs,) = torch.autograd.grad(F.linear(x, weight), weight, g)
    assert own.stride() == alone.stride() == theirs.stride()


def test_its_bits_do_not_depend_on_the_number_of_threads():
    x, weight, b, g = drawn(600, 300, 400, 0.05, 0)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = linear_by_entries(x, weight, b, MOST)
            out.backward(g)
            found.append((out.detach(), weight.grad))
            x.grad = weight.grad = b.grad = None
    finally:
        torch.set_num_threads(before)
    for out, gradient in found[1:]:
        assert torch.equal(out, found[0][0])
        assert torch.equal(gradient, found[0][1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_spreads_as_in_a_dense_product(value):
    x, weight, b, g = drawn(300, 40, 8, 0.03, 1)
    with torch.no_grad():
        weight[2, 3] = value
    assert linear_by_entries(x, weight, b, MOST) is None
    x, weight, b, g = drawn(300, 40, 8, 0.03, 1)
    g[5, 2] = value
    linear_by_entries(x, weight, b, MOST).backward(g)
    assert torch.equal(weight.grad.isnan(), (g.t() @ x.detach()).isnan())
    with torch.no_grad():
        x[4, 1] = value
    assert torch.equal(
        linear_by_entries(x, weight, b, MOST).isnan(), F.linear(x, weight, b).isnan()
    )


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_the_weight_gradient_alone(share, value, monkeypatch):
    monkeypatch.setattr(products, "_WORTH", 1)
    x, _, _, g = drawn(600, 70, 256, share, 2, signed=True)
    x, g = x.detach(), g + 0.0
    g[7, 3] = value
    found = products.weight_gradient(g, x)
    expected = g.double().t() @ x.double()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4, equal_nan=True)


def test_many_entries_are_multiplied_densely():
    x, weight, b, _ = drawn(300, 40, 8, 0.5, 1)
    assert linear_by_entries(x, weight, b, MOST) is None
    assert torch.equal(products.linear(x, weight, b), F.linear(x, weight, b))


def two_layers():
    return nn.Sequential(
        *(nn.Linear(300, 400), snn.Leaky(0.8, threshold=2.0, init_hidden=True)),
        *(nn.Linear(400, 300), snn.Leaky(0.9, init_hidden=True)),
        *(nn.Linear(300, 5), snn.Leaky(0.9, init_hidden=True, output=True)),
    )


def two_layers_of_norse():
    return norse.SequentialState(
        *(nn.Linear(300, 400), norse.LIFCell(), nn.Linear(400, 300)),
        *(norse.LIFCell(), nn.Linear(300, 5), norse.LICell()),
    )


@pytest.mark.parametrize("build", [two_layers, two_layers_of_norse])
def test_models_on_sparse_spikes_are_the_step_engines(build, monkeypatch):
    monkeypatch.setattr(products, "_WORTH", 1)
    used = []

    def noting(x, weight, bias, most):
        found = linear_by_entries(x, weight, bias, most)
        used.append(found is not None)
        return found

    monkeypatch.setattr(by_entries, "linear_by_entries", noting)
    torch.manual_seed(0)
    net = build()
    with torch.no_grad():
        net[0].weight.mul_(8)
        net[2].weight.mul_(8)
    spikes = (torch.rand(30, 16, 300) < 0.05).float()
    found = []
    for engine in ("step", "layer"):
        twin = copy.deepcopy(net)
        model = dvs.wrap(twin, dt=1.0, engine=engine)
        energy = EnergyLoss()
        energy.register_hooks(model)
        with EnergyMeter(model) as meter:
            membrane = model(spikes).membrane
        (membrane.square().mean() + energy(None, None)).backward()
        found.append((membrane.detach(), meter.budget(), [p.grad for p in twin.parameters()]))
    assert any(used)
    (theirs, budget, gradients), (ours, again, others) = found
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
    series = [[layer["series"] for layer in b.to_dict()["layers"]] for b in (budget, again)]
    assert series[0] == series[1]
    for one, other in zip(others, gradients, strict=True):
        assert float((one - other).abs().max()) <= 1e-4 * float(other.abs().max())
