"""Training to an energy limit: its units, its weight, its floor, and three limits on the digits."""

from __future__ import annotations

import math

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import CLASSES, FEATURES, data, net
from torch import nn
from torch.utils.data import DataLoader

import dynvision_snn as dvs
from dynvision_snn.data import load_digits
from dynvision_snn.demo import snntorch_model
from dynvision_snn.errors import LossError, TrainingError
from dynvision_snn.losses import build_criterion
from dynvision_snn.training import EnergyTarget, fit
from dynvision_snn.training.firing import FiringRate, spike_count
from dynvision_snn.training.floor import silent_budget

PRESENTATION = dvs.Presentation("0111", dt=1.0, n_timesteps=8, reaction_time=2.0, idle_time=3.0)
PROFILE = "45nm-fp32"


def _rleaky():
    return nn.Sequential(
        nn.Linear(FEATURES, 9),
        snn.RLeaky(0.8, threshold=0.3, linear_features=9, init_hidden=True),
        nn.Linear(9, CLASSES),
        snn.Leaky(0.8, init_hidden=True, output=True),
    )


def _norse():
    return norse.SequentialState(
        nn.Linear(FEATURES, 9),
        norse.LIFRecurrentCell(9, 9, dt=0.001),
        nn.Linear(9, CLASSES),
        norse.LICell(dt=0.001),
    )


NETS = {"leaky": lambda: net(dropout=0.0), "rleaky": _rleaky, "norse": _norse}


@pytest.fixture(params=NETS)
def model(request):
    torch.manual_seed(2)
    built = NETS[request.param]()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(3.0)
    return dvs.wrap(built, dt=1.0)


def _budget(model, images, presentation=PRESENTATION):
    with dvs.EnergyMeter(model) as meter, torch.no_grad():
        model(images, presentation)
    return meter.budget()


def _energy(budget, unit):
    return {
        "hertz": lambda: budget.total.firing_rate,
        "synops": lambda: budget.total.synops_ac + budget.total.synops_mac,
        "joules": lambda: float(budget.joules(PROFILE)),
    }[unit]()


def _target(limit, unit, **options):
    return EnergyTarget(limit, unit, PROFILE if unit == "joules" else None, **options)


@pytest.mark.parametrize("unit", ["hertz", "synops", "joules"])
def test_the_energy_is_that_of_the_budget(model, unit):
    """Idle time in neither; recurrent weights in both."""
    target = _target(1.0, unit)
    images = data()[0].tensors[0]
    with build_criterion([target], model=model) as criterion:
        criterion.eval()
        model(images, PRESENTATION)
        criterion(None, None)
    assert float(target.energy) == pytest.approx(_energy(_budget(model, images), unit), rel=1e-5)
    assert float(target.energy) > 0


def test_activity_is_the_references_energy(model):
    images = data()[0].tensors[0]
    criterion = build_criterion([EnergyTarget(1.0), "energy_loss"], model=model)
    model(images, PRESENTATION)
    criterion(None, None)
    target = criterion.losses[0]
    assert float(target.energy) == pytest.approx(float(criterion.components["EnergyLoss"]))


@given(
    energies=st.lists(st.floats(0.0, 10.0), min_size=1, max_size=20),
    limit=st.floats(0.1, 5.0),
    rate=st.floats(0.01, 1.0),
    damping=st.floats(0.0, 2.0),
)
def test_the_weight_follows_the_dual_update(energies, limit, rate, damping):
    """Against the recursion in plain numbers; never below 0."""
    target = EnergyTarget(limit, "activity", rate=rate, damping=damping)
    target.measure = _Fixed(energies)
    multiplier = 0.0
    for energy in energies:
        value = float(target(None, None))
        violation = energy / limit - 1
        multiplier = max(0.0, multiplier + rate * violation)
        weight = max(0.0, multiplier + damping * violation)
        assert float(target.multiplier) == pytest.approx(multiplier, rel=1e-4, abs=1e-5)
        assert value == pytest.approx(weight * energy / limit, rel=1e-4, abs=1e-4)
        assert float(target.weight) >= 0


class _Fixed(nn.Module):
    """Energies that are given, one batch each."""

    def __init__(self, energies):
        super().__init__()
        self._energies = iter(energies)

    def compute_loss(self, outputs, targets):
        return torch.full((3,), next(self._energies), requires_grad=True)

    def reset(self):
        """Nothing to forget."""


def test_evaluation_moves_nothing():
    target = EnergyTarget(1.0).eval()
    target.measure = _Fixed([5.0, 5.0])
    assert float(target(None, None)) == 0
    assert float(target.multiplier) == 0
    target.train()
    with torch.no_grad():
        target(None, None)
    assert float(target.multiplier) == 0


def test_the_multiplier_is_saved_with_the_criterion():
    target = EnergyTarget(1.0)
    target.measure = _Fixed([5.0])
    target(None, None)
    other = EnergyTarget(1.0)
    other.load_state_dict(target.state_dict())
    assert float(other.multiplier) == float(target.multiplier) > 0


def test_a_rate_has_a_gradient_at_silent_neurons():
    values = torch.zeros(4, 2, 3, requires_grad=True)
    spike_count(values).sum().backward()
    assert torch.equal(values.grad, torch.ones_like(values))
    graded = torch.tensor([[[0.0, 2.5], [2.5, 2.5]]])
    assert spike_count(graded).tolist() == [1.0, 2.0]


def test_a_rate_needs_a_spiking_layer_and_a_timed_model():
    gru = dvs.wrap(nn.GRU(4, 3), dt=1.0)
    with pytest.raises(LossError, match="no layer that spikes"):
        FiringRate().register_hooks(gru)
    bare, rate = snn.Leaky(0.5, init_hidden=True), FiringRate()
    rate.register_hooks(bare)
    bare(torch.ones(2, 3))
    with pytest.raises(LossError, match="no run of a TimedModel"):
        rate(None, None)


def test_the_floor_is_what_a_silent_network_costs(model):
    """Against the same network with thresholds out of reach."""
    images = data()[0].tensors[0]
    floor = silent_budget(model, images, PRESENTATION)
    before = _budget(model, images)
    assert before.total.spikes > 0
    for module in model.net.modules():
        if isinstance(module, snn.SpikingNeuron):
            module.threshold.fill_(1e9)
        elif isinstance(module, norse.LIFRecurrentCell):
            module.p = module.p._replace(v_th=torch.tensor(1e9))
    silent = _budget(model, images)
    assert silent.total.spikes == 0
    for unit in ("synops", "joules"):
        assert _energy(floor, unit) == pytest.approx(_energy(silent, unit))
    assert floor.total.neuron_updates == silent.total.neuron_updates


@pytest.mark.parametrize("unit", ["synops", "joules"])
def test_a_limit_below_the_floor_is_an_error_that_gives_it(unit):
    torch.manual_seed(0)
    model = dvs.wrap(net(), dt=1.0)
    images = data()[0].tensors[0]
    floor = _energy(silent_budget(model, images, PRESENTATION), unit)
    with pytest.raises(TrainingError, match=f"costs {floor:.6g} .* even if no neuron ever fires"):
        _target(0.9 * floor, unit).check_reachable(model, images, PRESENTATION)
    within = _target(1.5 * floor, unit)
    within.check_reachable(model, images, PRESENTATION)
    assert float(within.room) == pytest.approx(0.5 * floor, rel=1e-4)


def test_what_a_profile_cannot_price_has_no_limit_in_joules():
    model = dvs.wrap(net(), dt=1.0)
    target = EnergyTarget(1.0, "joules", "loihi")
    with pytest.raises(TrainingError, match=r"cannot price this model.*MACs"):
        target.check_reachable(model, data()[0].tensors[0], PRESENTATION)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"limit": 0.0}, "limit=0.0; expected a number above 0"),
        ({"limit": math.nan}, "limit=nan"),
        ({"limit": "3"}, "limit='3'"),
        ({"limit": 1.0, "unit": "herz"}, "Did you mean 'hertz'"),
        ({"limit": 1.0, "unit": "joules"}, "expected a hardware profile"),
        ({"limit": 1.0, "profile": PROFILE}, "none for another unit"),
        ({"limit": 1.0, "rate": 0.0}, "rate=0.0"),
        ({"limit": 1.0, "damping": -1.0}, "damping=-1.0"),
    ],
)
def test_targets_that_cannot_be_are_refused(arguments, told):
    with pytest.raises(LossError, match=told):
        EnergyTarget(**arguments)


# -- real digits ----------------------------------------------------------------------------------


DIGITS = dvs.Presentation("0111111100", dt=2.0, n_timesteps=20, reaction_time=8.0)
EPOCHS = 14


def _trained_on_digits(*targets):
    """Accuracy on the test digits, and what they cost."""
    training, test = load_digits()
    torch.manual_seed(0)
    model = dvs.wrap(snntorch_model(2.0), dt=2.0)
    for target in targets:
        target.check_reachable(model, training.tensors[0], DIGITS)
    loader = DataLoader(training, 128, shuffle=True, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    with build_criterion(["cross_entropy_loss", *targets], model=model) as criterion:
        fit(
            model,
            loader,
            DIGITS,
            criterion,
            optimizer,
            epochs=EPOCHS,
            on_epoch=lambda _: scheduler.step(),
        )
    return dvs.simulate(model, DataLoader(test, 364), DIGITS, progress=False)


@pytest.fixture(scope="module")
def unconstrained():
    return _trained_on_digits()


@pytest.mark.parametrize(
    ("unit", "limit", "binds", "accuracy"),
    [
        ("hertz", 12.0, True, 0.93),
        ("hertz", 30.0, True, 0.95),
        ("hertz", 300.0, False, 0.95),
        ("joules", None, True, 0.93),
    ],
)
def test_digits_are_learnt_within_the_limit(unconstrained, unit, limit, binds, accuracy, capsys):
    floor = 0.0
    if limit is None:
        # A quarter of the way from what cannot be saved to what training by accuracy alone costs.
        floor = float(unconstrained.budget.joules(PROFILE, by="term")["mac"])
        limit = floor + 0.25 * (_energy(unconstrained.budget, unit) - floor)
    result = _trained_on_digits(_target(limit, unit))
    energy, free = _energy(result.budget, unit), _energy(unconstrained.budget, unit)
    with capsys.disabled():
        print(
            f"\nlimit {limit:.4g} {unit}: {energy / limit:.1%} of it, accuracy "
            f"{result.accuracy:.1%}; unconstrained {free / limit:.1%}, {unconstrained.accuracy:.1%}"
        )
    assert energy <= 1.1 * limit
    if binds:
        assert free > limit
        assert energy >= 0.9 * limit
        # Most of the joules are the floor: what the neurons may add to it is met as well.
        assert abs(energy - limit) < 0.5 * (limit - floor)
    assert result.accuracy > accuracy
