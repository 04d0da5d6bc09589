"""Checkpointing over time: the same numbers, with less kept for the backward."""

from __future__ import annotations

import copy

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn

import dynvision_snn as dvs
from dynvision_snn.energy import EnergyMeter
from dynvision_snn.errors import TimingError, WrapError
from dynvision_snn.losses import EnergyLoss


class Passing(nn.Module):
    """States are passed."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(6, 9), nn.Linear(9, 3)
        self.hidden = snn.Synaptic(0.9, 0.8, learn_beta=True)
        self.lif = snn.Leaky(0.9, reset_mechanism="zero")

    def forward(self, x, states=None):
        syn, mem, out = states or (*self.hidden.init_synaptic(), self.lif.init_leaky())
        spikes, syn, mem = self.hidden(self.fc(x), syn, mem)
        spikes, out = self.lif(self.out(spikes), out)
        return out, (syn, mem, out)


def hidden(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(6, 9), *middle, snn.Leaky(0.9, init_hidden=True)),
        *(nn.Linear(9, 3), snn.Leaky(0.8, init_hidden=True, output=True)),
    )


def norse_net() -> nn.Module:
    return norse.SequentialState(
        norse.LIFRecurrentCell(6, 9, dt=0.001), nn.Linear(9, 3), norse.LICell(dt=0.001)
    )


NETS = {
    "hidden states": hidden,
    "passed states": Passing,
    "recurrent": norse_net,
    "dropout": lambda: hidden(nn.Dropout(0.5)),
    "batch normalisation": lambda: hidden(nn.BatchNorm1d(9)),
}


def found(build, engine, recompute_every, *, idle_time=0.0):
    """Membrane, losses, counts and gradients of one training step."""
    torch.manual_seed(0)
    net = build()
    model = dvs.wrap(net, dt=1.0, engine=engine, recompute_every=recompute_every)
    energy = EnergyLoss()
    energy.register_hooks(model)
    images = torch.rand(5, 6, generator=torch.Generator().manual_seed(1)) * 4
    presentation = dvs.Presentation("0111101", dt=1.0, n_timesteps=21, idle_time=idle_time)
    torch.manual_seed(2)
    with EnergyMeter(model) as meter:
        run = model(images, presentation, record=[model.layers()[0].name])
        joules = energy(None, None)
        loss = run.membrane.square().mean() + joules
        loss.backward()
    numbers = {"membrane": run.membrane.detach(), "energy": joules.detach()}
    numbers |= {name: p.grad for name, p in model.net.named_parameters()}
    numbers |= {f"buffer {name}": b for name, b in model.net.named_buffers()}
    numbers |= {f"{name} spikes": r.spikes.detach() for name, r in run.layers.items()}
    return numbers, meter.budget(dt=1.0).to_dict()


@pytest.mark.parametrize("engine", ["step", "auto"])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("every", [1.0, 5.0, 15.0])
def test_the_numbers_are_the_same(name, engine, every):
    whole, counted = found(NETS[name], engine, None, idle_time=3.0)
    again, counted_again = found(NETS[name], engine, every, idle_time=3.0)
    assert counted == counted_again
    assert whole.keys() == again.keys()
    assert any(value.abs().sum() > 0 for key, value in whole.items() if "weight" in key)
    # One matrix product over all timesteps rounds otherwise than one for each stretch.
    atol = 1e-5 * max(float(value.abs().max()) for value in whole.values() if value.numel())
    for key, value in whole.items():
        torch.testing.assert_close(again[key], value, rtol=1e-5, atol=atol, msg=key)


def kept_bytes(model, inputs) -> int:
    """Of what autograd saves in the forward, each storage once."""
    storages = {}

    def noted(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(noted, lambda tensor: tensor):
        run = model(inputs)
    assert run.membrane.requires_grad
    storages.pop(inputs.untyped_storage().data_ptr(), None)
    return sum(storages.values())


@pytest.mark.parametrize("engine", ["step", "layer"])
def test_what_is_kept_does_not_grow_with_time(engine):
    net = hidden()
    inputs = torch.rand(200, 4, 6)
    kept = [
        kept_bytes(dvs.wrap(copy.deepcopy(net), dt=1.0, engine=engine, recompute_every=e), inputs)
        for e in (None, 20.0)
    ]
    assert kept[1] < kept[0] / 5


def test_weights_changed_before_the_backward_are_told():
    model = dvs.wrap(hidden(), dt=1.0, recompute_every=2.0)
    run = model(torch.rand(9, 2, 6))
    with torch.no_grad():
        model.net[0].weight.mul_(2)
    with pytest.raises(WrapError, match=r"before optimizer\.step"):
        run.membrane.sum().backward()


def test_what_cannot_be_recomputed_is_refused():
    with pytest.raises(TimingError, match=r"recompute_every is 0\.25 ms"):
        dvs.wrap(hidden(), dt=1.0, recompute_every=0.25)
    sequence = nn.Sequential(nn.Linear(6, 9), norse.LIF(dt=0.001))

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = sequence

        def forward(self, x):
            return self.inner[1](self.inner[0](x))[0]

    model = dvs.wrap(Whole(), dt=1.0, stepping="sequence", recompute_every=2.0)
    with pytest.raises(WrapError, match="its own time loop"):
        model(torch.rand(9, 2, 6))


def test_without_a_gradient_nothing_is_kept_anyway():
    model = dvs.wrap(hidden(), dt=1.0, recompute_every=2.0)
    with torch.no_grad():
        assert not model(torch.rand(9, 2, 6)).membrane.requires_grad
