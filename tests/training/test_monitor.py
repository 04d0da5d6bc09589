"""The signs: each appears where it should, with its figure and a way out, and not elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import snntorch as snn
import torch
from torch import nn

import dynvision_snn as dvs
from dynvision_snn.adapters import Role
from dynvision_snn.losses import build_criterion
from dynvision_snn.training.monitor import (
    EpochFigures,
    LayerFigures,
    LayerProbe,
    Limits,
    gradient_norms,
    signs,
)

# The reference's table of a healthy training: cross-entropy and raw energy, weight 0.05.
HEALTHY = [
    (2.30, 0.05),
    (1.50, 0.12),
    (1.00, 0.15),
    (0.50, 0.15),
    (0.30, 0.14),
    (0.25, 0.14),
    (0.24, 0.14),
]


def _epoch(cross_entropy, energy, weight=0.05, **more):
    return EpochFigures(
        cross_entropy=cross_entropy,
        weighted_cross_entropy=cross_entropy,
        energy=energy,
        weighted_energy=weight * energy,
        **more,
    )


def _warnings(history, limits=None):
    return {sign.name: sign for sign in signs(history, limits) if not sign.healthy}


@pytest.mark.parametrize("n_epochs", range(1, len(HEALTHY) + 1))
def test_the_references_healthy_training_warns_of_nothing(n_epochs):
    history = [_epoch(*values) for values in HEALTHY[:n_epochs]]
    assert _warnings(history) == {}


def test_energy_that_grows_without_a_plateau():
    history = [_epoch(2.0 - 0.1 * n, 0.1 * 1.2**n) for n in range(7)]
    assert set(_warnings(history)) == {"energy plateau"}
    assert "+" in _warnings(history)["energy plateau"].figure
    assert "EnergyTarget" in _warnings(history)["energy plateau"].way_out


@pytest.mark.parametrize(
    ("history", "name", "figure"),
    [
        ([_epoch(2.0, 1.2, 0.01)], "raw energy", "1.2 per unit and timestep (limit 1)"),
        ([_epoch(0.1, 0.9, 0.2)], "energy against cross-entropy", "weighted energy 0.18"),
        ([_epoch(0.5, 0.5, 0.1)], "energy share", "9.1% of the loss (limit 5%)"),
        (
            [_epoch(1.0, 0.1), _epoch(1.2, 0.2)],
            "both losses",
            "cross-entropy +20.0% and energy +100.0%",
        ),
        ([_epoch(1.0, 0.1), _epoch(1.2, 0.1)], "cross-entropy", "+20.0% over 1 epochs"),
        (
            [_epoch(0.0, 0.1, 0.0, supervised_steps=0.0)],
            "supervision",
            "no timestep was supervised",
        ),
    ],
)
def test_each_sign_of_the_losses_comes_with_its_figure(history, name, figure):
    found = _warnings(history)
    assert figure in found[name].figure
    assert found[name].way_out


LAYER = LayerFigures(role=Role.SPIKING, rate=20.0, silent=0.2, saturated=0.0, largest=1.0)


@pytest.mark.parametrize(
    ("layer", "name", "figure"),
    [
        (replace(LAYER, silent=0.95), "silence of 'lif'", "95% of its neurons never spike"),
        (
            replace(LAYER, saturated=0.5),
            "saturation of 'lif'",
            "50% of its neurons spike at nearly",
        ),
        (replace(LAYER, rate=412.0), "rate of 'lif'", "412 Hz (limit 200 Hz)"),
        (
            LayerFigures(
                role=Role.ACTIVATION, rate=None, silent=None, saturated=None, largest=12.5
            ),
            "activation of 'lif'",
            "reaches 12.5 (limit 10)",
        ),
    ],
)
def test_each_sign_of_a_layer_comes_with_its_figure(layer, name, figure):
    found = _warnings([_epoch(1.0, 0.1, layers={"lif": layer})])
    assert set(found) == {name}
    assert figure in found[name].figure
    assert found[name].way_out


def test_a_healthy_layer_and_an_integrator_warn_of_nothing():
    integrator = LayerFigures(
        role=Role.INTEGRATOR, rate=None, silent=None, saturated=None, largest=80.0
    )
    assert _warnings([_epoch(1.0, 0.1, layers={"a": LAYER, "b": integrator})]) == {}


def test_gradients_that_vanish_on_the_way():
    found = _warnings([_epoch(1.0, 0.1, gradients={"0": 1e-9, "2": 1e-3, "4": 1.0})])
    assert set(found) == {"gradient of '0'"}
    assert "surrogate" in found["gradient of '0'"].way_out


def test_limits_are_the_users_to_set():
    history = [_epoch(0.5, 0.5, 0.1)]
    assert _warnings(history, Limits(share=0.2)) == {}


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(4, 6),
        snn.Leaky(0.8, threshold=0.5, init_hidden=True),
        nn.Linear(6, 3),
        snn.Leaky(0.8, init_hidden=True, reset_mechanism="none", output=True),
    )
    with torch.no_grad():
        net[0].weight.zero_()
        # One neuron always fires, two do so at every second timestep, three never.
        net[0].bias.copy_(torch.tensor([1.0, 0.3, 0.3, 0.0, 0.0, 0.0]))
    return dvs.wrap(net, dt=2.0)


def test_a_probe_counts_silent_and_saturated_neurons_and_rates(model):
    presentation = dvs.Presentation("1", dt=2.0, n_timesteps=20)
    probe = LayerProbe()
    with probe.on(model):
        model(torch.ones(3, 4), presentation)
    run = model(torch.ones(3, 4), presentation, record=["1"])
    spikes = run.layers["1"].spikes
    share = spikes.mean((0, 1))
    figures = probe.figures()["1"]
    assert figures.silent == pytest.approx(float((share == 0).double().mean())) == 0.5
    assert figures.saturated == pytest.approx(float((share >= 0.9).double().mean()), abs=1e-9)
    assert figures.saturated > 0
    assert figures.rate == pytest.approx(float(spikes.mean()) / 2e-3)
    with dvs.EnergyMeter(model) as meter:
        model(torch.ones(3, 4), presentation)
    assert figures.rate == pytest.approx(meter.budget().layers[1].firing_rate)


def test_gradient_norms_are_those_of_the_parameters(model):
    criterion = build_criterion(["cross_entropy_loss"])
    presentation = dvs.Presentation("1", dt=2.0, n_timesteps=5)
    loss = criterion(
        model(torch.ones(3, 4), presentation).membrane, presentation.targets(torch.arange(3))
    )
    loss.backward()
    norms = gradient_norms(model)
    assert set(norms) == {"0", "2"}
    weight, bias = model.net[2].weight.grad, model.net[2].bias.grad
    assert norms["2"] == pytest.approx(float(torch.cat([weight.flatten(), bias]).norm()))
