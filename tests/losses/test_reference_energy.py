"""What the reference states of EnergyLoss, in the reference's own usage."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from dynvision_snn import Presentation
from dynvision_snn.errors import LossError, ObservationError
from dynvision_snn.losses import CrossEntropyLoss, EnergyLoss, build_criterion

snntorch = pytest.importorskip("snntorch")

REFUSALS = (LossError, ObservationError)


def conv_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.ConvTranspose2d(3, 2, 2), nn.Flatten(), nn.Linear(98, 5)
    )


def spiking_net():
    torch.manual_seed(0)
    leaky = {"beta": 0.9, "init_hidden": True, "threshold": 0.2}
    return nn.Sequential(
        nn.Linear(6, 8), snntorch.Leaky(**leaky), nn.Linear(8, 4), snntorch.Leaky(**leaky)
    )


def by_hand(frames, monitored, p):
    """The reference's formula as a plain loop: ``[B]``."""
    energy = 0
    for outputs in frames:
        for k in monitored:
            for_each = outputs[k].flatten(1)
            energy = energy + for_each.abs().pow(p).sum(1).pow(1 / p) / for_each.shape[1]
    return energy / (len(monitored) * len(frames))


def step_by_step(net, inputs):
    """Every module's output at every timestep."""
    frames = []
    for x in inputs:
        outputs = []
        for module in net:
            x = module(x)
            outputs.append(x)
        frames.append(outputs)
    return frames


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("p", [1, 2, 3, 1.5])
def test_formula_on_conv_and_linear_layers(p):
    net, inputs = conv_net(), torch.randn(4, 2, 1, 8, 8)
    energy = EnergyLoss("none", p=p)
    energy.register_hooks(net)
    frames = step_by_step(net, inputs)
    torch.testing.assert_close(energy(None, None), by_hand(frames, (0, 2, 4), p))


@pytest.mark.parametrize("p", [1, 2])
def test_formula_on_the_spikes_of_spiking_layers(p):
    net, inputs = spiking_net(), torch.rand(7, 3, 6) * 2
    energy = EnergyLoss("none", p=p)
    energy.register_hooks(net)
    frames = step_by_step(net, inputs)
    wanted = by_hand(frames, (1, 3), p)
    assert (wanted > 0).all()
    torch.testing.assert_close(energy(None, None), wanted)


@pytest.mark.parametrize(("reduction", "reduce"), [("mean", torch.mean), ("sum", torch.sum)])
def test_reductions_are_over_the_batch(reduction, reduce):
    net, inputs = conv_net(), torch.randn(4, 2, 1, 8, 8)
    per_sample, energy = EnergyLoss("none"), EnergyLoss(reduction)
    for loss in (per_sample, energy):
        loss.register_hooks(net)
    step_by_step(net, inputs)
    torch.testing.assert_close(energy(None, None), reduce(per_sample(None, None)))


def test_defaults_are_the_references():
    assert EnergyLoss().reduction == "mean"
    assert EnergyLoss().p == 1


def test_mean_of_p_1_is_the_average_absolute_activity():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    energy = EnergyLoss()
    energy.register_hooks(net)
    frames = step_by_step(net, torch.randn(5, 2, 3))
    average = torch.stack([torch.stack(outputs) for outputs in frames]).abs().mean()
    torch.testing.assert_close(energy(outputs=None, targets=None), average)


def test_null_input_and_reaction_windows_count():
    presentation = Presentation("00111100", dt=2.0, reaction_time=4.0)
    net = nn.Linear(3, 4)
    energy = EnergyLoss("none")
    energy.register_hooks(net)
    inputs = presentation.present(torch.randn(2, 3))
    frames = [[net(x)] for x in inputs]
    assert 0 < presentation.supervised_mask.sum() < len(frames)
    torch.testing.assert_close(energy(None, None), by_hand(frames, (0,), 1))


def test_cross_entropy_and_energy_are_normalised_apart():
    presentation = Presentation("00111100", dt=2.0, reaction_time=4.0)
    net, images, labels = nn.Linear(3, 4), torch.randn(2, 3), torch.tensor([1, 3])
    with build_criterion(
        [
            {"name": "cross_entropy_loss", "weight": 1.0, "kwargs": {"ignore_index": -1}},
            {"name": "energy_loss", "weight": 0.05, "kwargs": {"reduction": "mean", "p": 1}},
        ],
        model=net,
    ) as criterion:
        outputs = torch.stack([net(x) for x in presentation.present(images)])
        total = criterion(outputs, presentation.targets(labels))
    supervised = outputs[presentation.supervised_mask]
    entropy = nn.functional.cross_entropy(supervised.flatten(0, 1), labels.repeat(len(supervised)))
    torch.testing.assert_close(total, 1.0 * entropy + 0.05 * outputs.abs().mean())
    torch.testing.assert_close(
        criterion.components,
        {"CrossEntropyLoss": entropy.detach(), "EnergyLoss": outputs.abs().mean().detach()},
    )


def test_accumulators_are_empty_after_each_batch():
    net, energy = nn.Linear(3, 4), EnergyLoss()
    energy.register_hooks(net)
    net(torch.full((2, 3), 100.0))
    energy(None, None)
    second = net(torch.ones(2, 3))
    torch.testing.assert_close(energy(None, None), second.abs().mean())


def test_without_hooks_or_timesteps_it_is_an_error_and_never_zero():
    energy = EnergyLoss()
    with pytest.raises(REFUSALS, match="register_hooks"):
        energy(None, None)
    energy.register_hooks(nn.Linear(3, 4))
    with pytest.raises(REFUSALS, match="no timestep"):
        energy(None, None)


def test_layers_observed_unequal_times_are_refused():
    net = nn.ModuleDict({"once": nn.Linear(3, 3), "twice": nn.Linear(3, 3)})
    energy = EnergyLoss()
    energy.register_hooks(net)
    x = torch.ones(2, 3)
    net["once"](x)
    net["twice"](x)
    net["twice"](x)
    with pytest.raises(REFUSALS, match=r"once: 1, twice: 2"):
        energy(None, None)


def test_nothing_to_monitor_is_refused():
    with pytest.raises(LossError, match="nothing to monitor"):
        EnergyLoss().register_hooks(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize("training", [True, False])
def test_training_mode_does_not_matter(training):
    net, energy = nn.Linear(3, 4).train(training), EnergyLoss()
    energy.register_hooks(net)
    out = net(torch.ones(2, 3))
    torch.testing.assert_close(energy(None, None), out.abs().mean())


def test_the_references_training_step():
    net, inputs = conv_net(), torch.randn(3, 2, 1, 8, 8)
    targets = torch.tensor([[-1, -1], [0, 3], [0, 3]])
    cross_entropy = CrossEntropyLoss(reduction="mean", ignore_index=-1)
    energy_loss = EnergyLoss(reduction="mean", p=1)
    energy_loss.register_hooks(net)
    outputs = torch.stack([net(x) for x in inputs])
    loss = cross_entropy(outputs.view(-1, 5), targets.view(-1)) + 0.05 * energy_loss(None, None)
    loss.backward()
    assert all(parameter.grad.any() for parameter in net.parameters())


def test_hooks_are_given_back():
    net, energy = conv_net(), EnergyLoss()
    before = hooks(net)
    energy.register_hooks(net)
    assert hooks(net) > before
    energy.remove_hooks()
    assert hooks(net) == before


def test_a_deleted_loss_is_gone():
    net, energy = nn.Linear(3, 4), EnergyLoss()
    energy.register_hooks(net)
    gone = weakref.ref(energy)
    del energy
    gc.collect()
    assert gone() is None
    net(torch.ones(2, 3))


def test_the_references_choice_can_be_restored():
    net, inputs = spiking_net(), torch.rand(3, 2, 6)
    energy = EnergyLoss("none", monitor=(nn.Conv2d, nn.Linear, nn.ConvTranspose2d))
    energy.register_hooks(net)
    frames = step_by_step(net, inputs)
    torch.testing.assert_close(energy(None, None), by_hand(frames, (0, 2), 1))


@pytest.mark.parametrize("second", ["without gradient", "another size"])
def test_batches_do_not_mix(second):
    net, energy = nn.Linear(3, 4), EnergyLoss()
    energy.register_hooks(net)
    net(torch.ones(2, 3))
    with (
        pytest.raises(REFUSALS, match=r"reset\(\)"),
        torch.set_grad_enabled(second != "without gradient"),
    ):
        net(torch.ones(5 if second == "another size" else 2, 3))


def test_only_one_value_per_module_and_sample_is_kept():
    net, energy = nn.Linear(3, 4), EnergyLoss()
    energy.register_hooks(net)
    with torch.no_grad():
        out = net(torch.ones(2, 3))
        kept = weakref.ref(out)
        del out
    gc.collect()
    assert kept() is None
    assert energy(None, None) > 0


def test_silent_units_get_no_gradient():
    spikes = torch.tensor([[0.0, 1.0, 0.0, 2.0]], requires_grad=True)
    for p in (1, 2):
        net, energy = nn.Identity(), EnergyLoss(p=p, monitor=nn.Identity)
        energy.register_hooks(net)
        net(spikes)
        (gradient,) = torch.autograd.grad(energy(None, None), spikes)
        assert (gradient != 0).tolist() == [[False, True, False, True]]
