"""Recurrent input as sums over the units that spiked, against the library's own loop."""

from __future__ import annotations

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from scan_cases import Case, own_loop

from dynvision_snn.adapters import norse_scan, snntorch_scan
from dynvision_snn.engine.scans import recursion, scan
from dynvision_snn.errors import WrapError

pytest.importorskip("numba")

from dynvision_snn.engine.scans import numba_scans

UNITS, BATCH, STEPS = 37, 5, 50


def _rleaky(factor=None, **options):
    def make():
        neuron = snn.RLeaky(0.85, linear_features=UNITS, **options)
        if factor is not None:
            neuron.graded_spikes_factor = torch.tensor(factor)
        return neuron

    return Case(make, snntorch_scan.spec, snntorch_scan.why_not, UNITS)


CASES = {
    "RLeaky": _rleaky(learn_beta=True, learn_threshold=True),
    "RLeaky-zero": _rleaky(reset_mechanism="zero"),
    "RLeaky-at-once": _rleaky(reset_delay=False),
    "RLeaky-graded": _rleaky(1.3),
    "LIFRecurrentCell": Case(
        lambda: norse.LIFRecurrentCell(20, UNITS, norse.LIFParameters(v_th=torch.tensor(0.4))),
        norse_scan.spec,
        norse_scan.why_not,
        20,
    ),
}


@pytest.fixture
def stretches(monkeypatch):
    """How many timesteps each call that sums over spikes ran."""
    monkeypatch.setattr(recursion, "_WORTH", 1)
    monkeypatch.setattr(numba_scans, "_JOINED_BLOCK", 2 * UNITS)
    ran = []
    original = numba_scans.forward_joined

    def noting(rule, index, *others):
        ran.append(len(index))
        original(rule, index, *others)

    monkeypatch.setattr(numba_scans, "forward_joined", noting)
    return ran


def _inputs(features):
    """Some spikes, then very many, then some."""
    generator = torch.Generator().manual_seed(1)
    inputs = 0.7 * torch.randn(STEPS, BATCH, features, generator=generator)
    inputs[10:20] += 2.0
    return inputs


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("most", [0.2, 1.0])
def test_it_is_the_librarys_own_loop(case, most, stretches, monkeypatch):
    monkeypatch.setattr(recursion, "_MOST", most)
    torch.manual_seed(3)
    module = case.make()
    inputs = _inputs(case.features).requires_grad_()
    theirs = own_loop(module, inputs)
    ours = scan(case.spec(module), inputs, keep=("spikes", "membrane", "activity"))
    assert sum(stretches) == STEPS if most == 1.0 else 0 < sum(stretches) <= STEPS
    assert torch.equal(ours.spikes, theirs.spikes)
    assert 0.02 < float(theirs.spikes.count_nonzero()) / theirs.spikes.numel() < 0.9
    torch.testing.assert_close(ours.membrane, theirs.membrane, rtol=0, atol=1e-5)
    for name, value in theirs.state.items():
        torch.testing.assert_close(ours.state[name], value, rtol=0, atol=1e-5)
    activity = theirs.spikes.abs().flatten(2).sum((0, 2))
    torch.testing.assert_close(ours.activity, activity, rtol=1e-6, atol=0)
    weights = torch.randn(theirs.spikes.shape, generator=torch.Generator().manual_seed(2))
    wanted = [inputs, *(p for p in module.parameters() if p.requires_grad)]
    gradients = [
        torch.autograd.grad(
            (ran.spikes * weights + ran.membrane).sum() + (active * weights[0, :, 0]).sum(), wanted
        )
        for ran, active in ((ours, ours.activity), (theirs, activity))
    ]
    for mine, other in zip(*gradients, strict=True):
        assert float((mine - other).abs().max()) <= 1e-4 * float(other.abs().max())


def test_where_very_many_spike_it_takes_products(stretches):
    module = CASES["RLeaky"].make()
    inputs = _inputs(UNITS)
    inputs[:] += 5.0
    scan(CASES["RLeaky"].spec(module), inputs)
    # Nothing spiked before the first timestep, and nearly all do before the next look.
    assert stretches == [16]


def test_it_goes_on_from_spikes_and_units_may_have_axes(stretches, monkeypatch):
    monkeypatch.setattr(recursion, "_MOST", 1.0)
    module = CASES["RLeaky"].make()
    inputs = _inputs(UNITS).unflatten(1, (1, BATCH)).expand(-1, 2, -1, -1)
    first = own_loop(module, inputs[:11])
    state = {name: value.detach().requires_grad_() for name, value in first.state.items()}
    assert bool(state["spikes"].any())
    theirs = own_loop(module, inputs[11:], state)
    ours = scan(CASES["RLeaky"].spec(module), inputs[11:], state=state)
    assert sum(stretches) == STEPS - 11
    assert torch.equal(ours.spikes, theirs.spikes)
    gradients = [
        torch.autograd.grad(ran.state["membrane"].sum(), list(state.values()))
        for ran in (ours, theirs)
    ]
    for mine, other in zip(*gradients, strict=True):
        assert float((mine - other).abs().max()) <= 1e-4 * float(other.abs().max())


def test_nothing_is_kept_in_inference_mode_and_there_is_no_second_derivative(stretches):
    module = CASES["RLeaky"].make()
    spec, inputs = CASES["RLeaky"].spec(module), _inputs(UNITS).requires_grad_()
    trained = scan(spec, inputs).spikes
    with torch.inference_mode():
        ran = scan(spec, inputs).spikes
    assert stretches
    assert not ran.requires_grad
    assert torch.equal(ran, trained)
    (g,) = torch.autograd.grad(trained.square().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable"):
        g.sum().backward()


def test_a_matrix_of_another_size_is_refused():
    module = CASES["RLeaky"].make()
    with pytest.raises(WrapError, match=r"\[37, 37\]; expected \[36, 36\]"):
        scan(CASES["RLeaky"].spec(module), torch.zeros(2, 3, UNITS - 1))


def test_its_bits_do_not_depend_on_the_number_of_threads(stretches, monkeypatch):
    monkeypatch.setattr(numba_scans, "_PER_THREAD_JOINED", 100)
    monkeypatch.setattr(recursion, "_MOST", 1.0)
    torch.manual_seed(3)
    case = CASES["RLeaky"]
    module, before, found = case.make(), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(scan(case.spec(module), _inputs(UNITS), keep=("membrane", "spikes")))
    finally:
        torch.set_num_threads(before)
    assert sum(stretches) == 3 * STEPS
    for other in found[1:]:
        assert torch.equal(other.spikes, found[0].spikes)
        assert torch.equal(other.membrane, found[0].membrane)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_not_lost_where_nothing_spikes(value, stretches):
    module = CASES["RLeaky"].make()
    with torch.no_grad():
        module.recurrent.weight[2, 3] = value
    inputs = -torch.ones(STEPS, BATCH, UNITS)
    theirs = own_loop(module, inputs)
    ours = scan(CASES["RLeaky"].spec(module), inputs, keep=("membrane", "spikes"))
    assert not stretches
    assert bool(theirs.membrane[..., 2].isnan().any())
    assert torch.equal(ours.membrane.isnan(), theirs.membrane.isnan())
