"""SynOps and joules as a loss: the meter's numbers, with a gradient that silent neurons feel."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from snntorch import surrogate
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import dynvision_snn as dvs
from dynvision_snn.energy import EnergyMeter, HardwareProfile
from dynvision_snn.errors import EnergyError, LossError
from dynvision_snn.losses import SynopsLoss, build_criterion

B, T = 3, 5
CHIP = HardwareProfile(
    name="chip", source="bench", basis="measured", ac=2e-12, mac=5e-12, spike=1e-12,
    neuron_update_active=3e-12, neuron_update_inactive=1e-12,
)  # fmt: skip


def leaky(**options: Any) -> snn.Leaky:
    given = {"beta": 0.9, "threshold": 0.2, "init_hidden": True}
    return snn.Leaky(**{**given, "spike_grad": surrogate.fast_sigmoid(slope=5), **options})


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), leaky(), nn.Flatten(), nn.Linear(32, 6), leaky()
    )


def images() -> Tensor:
    return 4 * torch.rand(T, B, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def run(net: nn.Module, inputs: Tensor) -> None:
    for module in net.modules():
        if isinstance(module, snn.SpikingNeuron):
            module.reset_mem()
    for x in inputs:
        net(x)


@pytest.mark.parametrize("profile", [None, CHIP, "45nm-fp32", "loihi"])
def test_the_loss_is_the_meters_number(profile: Any) -> None:
    net = make_net()
    loss = SynopsLoss(profile=profile, relative=False)
    loss.register_hooks(net)
    with EnergyMeter(net) as meter:
        run(net, images())
    budget = meter.budget(dt=1.0)
    if profile is None:
        expected = budget.total.synops_ac + budget.total.synops_mac
    elif profile == "loihi":
        with pytest.warns(dvs.errors.EnergyWarning):
            expected = float(budget.joules(profile))
    else:
        expected = float(budget.joules(profile))
    assert budget.total.spikes > 0
    assert float(loss(None, None)) == pytest.approx(expected, rel=1e-5)


def test_two_magnitudes_in_double_precision_are_analog() -> None:
    net = nn.Linear(3, 2).double()
    loss = SynopsLoss(profile=CHIP, relative=False)
    loss.register_hooks(net)
    with EnergyMeter(net) as meter:
        net(torch.tensor([[1.0, 1.0 + 1e-12, 0.0]], dtype=torch.float64))
    assert float(loss(None, None)) == pytest.approx(4 * CHIP.mac)
    assert float(meter.budget(dt=1.0).joules(CHIP)) == pytest.approx(4 * CHIP.mac)


@pytest.mark.parametrize("profile", [None, CHIP])
def test_relative_is_a_share_of_everything_active(profile: Any) -> None:
    relative = SynopsLoss("none", profile=profile)
    net = nn.Sequential(nn.Linear(4, 3), leaky(threshold=-99.0, reset_mechanism="none"))
    relative.register_hooks(net)
    run(net, torch.ones(T, B, 4))
    torch.testing.assert_close(relative(None, None).detach(), torch.ones(B))
    run(net, torch.zeros(T, B, 4))
    assert (relative(None, None) < 1).all()


def test_recurrent_weights_and_the_silence_before_them() -> None:
    torch.manual_seed(0)
    lif = norse.LIFRecurrentCell(4, 6)
    loss = SynopsLoss(relative=False)
    loss.register_hooks(lif)
    with EnergyMeter(lif) as meter:
        state = None
        for x in 100 * torch.rand(T, B, 4):
            _, state = lif(x, state)
    total = meter.budget(dt=1.0).total
    assert total.synops_ac > 0
    assert float(loss(None, None)) == pytest.approx(total.synops_ac + total.synops_mac)


def test_the_gradient_at_spikes_is_their_fan_out_fired_or_not() -> None:
    fc = nn.Linear(4, 3)
    with torch.no_grad():
        fc.weight[:2, 1] = 0
    loss = SynopsLoss("sum", relative=False)
    loss.register_hooks(fc)
    spikes = torch.tensor([[1.0, 0.0, 1.0, 0.0]], requires_grad=True)
    fc(spikes)
    loss(None, None).backward()
    assert spikes.grad is not None
    assert spikes.grad.tolist() == [[3, 1, 3, 3]]


def test_a_silent_neuron_near_threshold_feels_it_and_a_norm_does_not() -> None:
    for make, felt in ((lambda: SynopsLoss("sum"), True), (lambda: dvs.losses.EnergyLoss(), False)):
        net = nn.Sequential(nn.Linear(1, 1), leaky(threshold=1.0), nn.Linear(1, 1))
        with torch.no_grad():
            net[0].weight.fill_(0.9)
            net[0].bias.zero_()
        loss = make()
        loss.register_hooks(net)
        run(net, torch.ones(1, 1, 1))
        value = loss(None, None)
        value.backward()
        assert (float(net[0].weight.grad) > 0) == felt


def test_training_on_it_lowers_the_measured_synops() -> None:
    net = make_net()
    loss = SynopsLoss()
    loss.register_hooks(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    values = []
    for _ in range(8):
        run(net, images())
        value = loss(None, None)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value))
    assert values[-1] < values[0]


def test_in_a_criterion_of_a_wrapped_model_idle_time_is_left_out() -> None:
    model = dvs.wrap(make_net(), dt=1.0)
    p = dvs.Presentation("11111", dt=1.0, idle_time=3.0)
    criterion = build_criterion(
        [
            {"name": "cross_entropy_loss", "weight": 1.0},
            {"name": "synops_loss", "weight": 0.1, "kwargs": {"relative": False}},
        ],
        model=model,
    )
    with EnergyMeter(model) as meter:
        run_ = model(images()[0], p)
    criterion(run_.membrane, p.targets(torch.zeros(B, dtype=torch.long))).backward()
    total = meter.budget().total
    expected = total.synops_ac + total.synops_mac
    assert float(criterion.components["SynopsLoss"]) == pytest.approx(expected)
    criterion.remove_hooks()


def test_checkpointing_gives_the_same_gradient() -> None:
    grads = []
    for again in (False, True):
        net = make_net()
        loss = SynopsLoss()
        loss.register_hooks(net)
        total = torch.zeros(())
        for x in images():
            x.requires_grad_()
            y = checkpoint(net[:1], x, use_reentrant=False) if again else net[:1](x)
            spikes = net[1](y)
            fc = checkpoint(net[2:4], spikes, use_reentrant=False) if again else net[2:4](spikes)
            total = total + net[4](fc).sum()
        (loss(None, None) + total).backward()
        grads.append(net[0].weight.grad)
        loss.remove_hooks()
    torch.testing.assert_close(*grads)


def test_values_below_zero_are_pushed_up() -> None:
    fc = nn.Linear(2, 1)
    loss = SynopsLoss(relative=False)
    loss.register_hooks(fc)
    x = torch.tensor([[-1.0, 1.0]], requires_grad=True)
    fc(x)
    loss(None, None).backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[-1, 1]]


def test_half_precision_counts_in_float32() -> None:
    fc = nn.Linear(3000, 2).bfloat16()
    loss = SynopsLoss(relative=False)
    loss.register_hooks(fc)
    fc(torch.ones(1, 3000, dtype=torch.bfloat16))
    assert float(loss(None, None)) == 6000


class TestMisuse:
    def test_without_hooks_or_without_a_call(self) -> None:
        with pytest.raises(LossError, match="has no hooks"):
            SynopsLoss()(None, None)
        loss = SynopsLoss()
        loss.register_hooks(make_net())
        with pytest.raises(LossError, match="observed no call"):
            loss(None, None)
        with pytest.raises(LossError, match="observes a model already"):
            loss.register_hooks(make_net())

    def test_nothing_with_synapses(self) -> None:
        with pytest.raises(LossError, match="no layer with synapses"):
            SynopsLoss().register_hooks(nn.ReLU())

    def test_profiles(self) -> None:
        with pytest.raises(LossError, match="activity does not change the joules"):
            SynopsLoss(profile="gpu")
        with pytest.raises(EnergyError, match="Did you mean 'loihi'"):
            SynopsLoss(profile="loihi2")

    def test_batch_sizes_do_not_mix(self) -> None:
        net = nn.Linear(3, 2)
        loss = SynopsLoss()
        loss.register_hooks(net)
        net(torch.ones(2, 3))
        with pytest.raises(LossError, match="batch sizes 2 and 3"):
            net(torch.ones(3, 3))

    def test_copies_listen_to_nothing(self) -> None:
        net = nn.Linear(3, 2)
        loss = SynopsLoss()
        loss.register_hooks(net)
        net(torch.ones(2, 3))
        for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
            with pytest.raises(LossError, match="has no hooks"):
                other(None, None)
        assert float(loss(None, None)) == 1


def test_a_transposed_convolution_called_with_its_output_size() -> None:
    layer = nn.ConvTranspose1d(1, 2, 5, stride=3, padding=1)
    loss = SynopsLoss(relative=False)
    loss.register_hooks(layer)
    with EnergyMeter(layer) as meter:
        layer(torch.rand(2, 1, 4), output_size=[13])
    assert float(loss()) == meter.budget(dt=1.0).total.synops_mac
