"""Small networks of both libraries, each with the loop that a user would write."""

from __future__ import annotations

from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

from dynvision_snn.energy import EnergyBudget, EnergyMeter

B, T = 3, 5


def sparsify(net: nn.Module, keep: float = 0.7, seed: int = 0) -> nn.Module:
    """Sets some weights to zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if p.ndim > 1 and "weight" in name:
                p.mul_((torch.rand(p.shape, generator=generator) < keep).to(p))
    return net


def leaky(**options: Any) -> snn.Leaky:
    return snn.Leaky(**{"beta": 0.9, "threshold": 0.3, **options})


class ConvNet(nn.Module):
    """snnTorch: convolution, pooling, a Linear; state inside the neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1, stride=2)
        self.lif1 = leaky(init_hidden=True)
        self.pool = nn.MaxPool2d(2)
        self.flat = nn.Flatten()
        self.fc = nn.Linear(12, 4)
        self.lif2 = leaky(init_hidden=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lif2(self.fc(self.flat(self.pool(self.lif1(self.conv(x))))))


def conv_net() -> nn.Module:
    torch.manual_seed(1)
    return sparsify(ConvNet())


def conv_inputs() -> Tensor:
    return torch.rand(T, B, 2, 8, 8, generator=torch.Generator().manual_seed(2))


def run_loop(net: Any, inputs: Tensor) -> None:
    """snnTorch's loop over a net that keeps its state."""
    for module in net.modules():
        if isinstance(module, snn.SpikingNeuron):
            module.reset_mem()
    for x in inputs:
        net(x)


class NorseRecurrent(nn.Module):
    """Norse: recurrent weights inside the neuron, states passed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 5)
        self.lif = norse.LIFRecurrentCell(5, 7)
        self.out = nn.Linear(7, 3)
        self.li = norse.LICell()

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        state = [None, None] if state is None else list(state)
        z, state[0] = self.lif(60 * self.fc(x), state[0])
        v, state[1] = self.li(self.out(z), state[1])
        return v, state


def norse_recurrent() -> nn.Module:
    torch.manual_seed(3)
    return sparsify(NorseRecurrent())


def run_states(net: Any, inputs: Tensor) -> None:
    state = None
    for x in inputs:
        _, state = net(x, state)


class SharedTwice(nn.Module):
    """One Linear used twice per timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.lif1, self.lif2 = leaky(init_hidden=True), leaky(init_hidden=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lif2(self.fc(self.lif1(self.fc(x))))


SERIES = ("spikes", "synops_ac", "synops_mac", "synops_weighted", "neuron_updates", "synops_dense")


def layer(budget: EnergyBudget, name: str) -> Any:
    return next(row for row in budget.layers if row.name == name)


def measured(net: nn.Module, inputs: Tensor, loop: Any = run_loop, **options: Any) -> EnergyBudget:
    with EnergyMeter(net, **options) as meter:
        loop(net, inputs)
    return meter.budget(dt=1.0)


def check_same(a: EnergyBudget, b: EnergyBudget) -> None:
    assert [r.name for r in a.layers] == [r.name for r in b.layers]
    for x, y in zip(a.layers, b.layers, strict=True):
        for quantity in SERIES:
            # |x| is summed over the batch in float32; all else is exact.
            rel = 1e-6 if quantity == "synops_weighted" else 1e-12
            assert getattr(x, quantity) == pytest.approx(getattr(y, quantity), rel=rel), x.name
    for quantity in SERIES:
        torch.testing.assert_close(
            a.by_timestep(quantity), b.by_timestep(quantity), rtol=1e-6, atol=0
        )
