"""Agreement with NeuroBench 2.3's SynapticOperations, and the differences that are meant."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import snntorch as snn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynvision_snn.energy import EnergyBudget, EnergyMeter

models = pytest.importorskip("neurobench.models", reason="NeuroBench is not installed")
workload = pytest.importorskip("neurobench.metrics.workload")

B, T = 3, 4
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}


def sparsify(net: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                module.weight.mul_(torch.rand(module.weight.shape, generator=generator) < 0.8)


def neurobench(net: nn.Module, loop: Any, n_samples: int = B) -> dict[str, float]:
    """What NeuroBench counts while `loop` runs `net`. It looks at children alone."""
    model = models.TorchModel(nn.ModuleList([net]))
    model.register_hooks()
    loop()
    found = workload.SynapticOperations()(model, None, (torch.zeros(n_samples), None))
    for hook in model.connection_hooks:
        hook.close()
    return found


def both(net: nn.Module, inputs: Tensor) -> tuple[EnergyBudget, dict[str, float]]:
    def loop() -> None:
        for module in net.modules():
            if isinstance(module, snn.SpikingNeuron):
                module.reset_mem()
        with torch.no_grad():
            for x in inputs:
                net(x)

    with EnergyMeter(net) as meter:
        loop()
    return meter.budget(dt=1.0), neurobench(net, loop)


def check_agreement(budget: EnergyBudget, theirs: dict[str, float]) -> None:
    total = budget.total
    assert total.synops_ac * B == theirs["Effective_ACs"] * B
    assert total.synops_mac * B == theirs["Effective_MACs"] * B
    assert total.synops_dense * B == theirs["Dense"] * B


@settings(max_examples=25)
@given(
    axes=st.integers(1, 3),
    channels=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    mode=st.sampled_from(["zeros", "circular", "replicate"]),
    analog=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_random_spiking_conv_nets(
    axes: int,
    channels: int,
    stride: int,
    padding: int,
    dilation: int,
    mode: str,
    analog: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    size = (6,) * axes
    conv = CONVS[axes](2, 2 * channels, 3, stride, padding, dilation, groups=2, padding_mode=mode)
    lif = snn.Leaky(beta=0.9, threshold=0.1, init_hidden=True)
    net = nn.Sequential(conv, lif, POOLS[axes](1), nn.Flatten(), nn.LazyLinear(5))
    with torch.no_grad():
        net(torch.zeros(1, 2, *size))
    net.append(snn.Leaky(beta=0.9, threshold=0.1, init_hidden=True))
    net.append(nn.Linear(5, 2))
    sparsify(net, generator)
    inputs = torch.rand(T, B, 2, *size, generator=generator)
    if not analog:
        inputs = (inputs < 0.3).float()
    check_agreement(*both(net, inputs))


@pytest.mark.parametrize("widths", [(20, 25, 25), (20, 20, 25, 25, 25)])
def test_their_own_figures(widths: tuple[int, ...]) -> None:
    net = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in pairwise(widths)))
    with torch.no_grad():
        for layer in net:
            layer.weight.abs_().add_(0.1)
    budget, theirs = both(net, torch.ones(1, B, widths[0]))
    expected = {(20, 25, 25): 1125, (20, 20, 25, 25, 25): 2150}[widths]
    assert budget.total.synops_dense == theirs["Dense"] == expected
    assert budget.total.synops_ac + budget.total.synops_mac == expected


def test_the_meter_and_their_hooks_at_once() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight.abs_()  # a hidden value that is alone would be a spike here
    x = torch.rand(B, 6)
    with EnergyMeter(net) as meter:
        theirs = neurobench(net, lambda: net(x))
    check_agreement(meter.budget(dt=1.0), theirs)


def test_rnn_cells_agree() -> None:
    torch.manual_seed(0)
    cell, x, h = nn.RNNCell(25, 5), torch.ones(B, 25), torch.ones(B, 5)
    with EnergyMeter(cell) as meter:
        theirs = neurobench(cell, lambda: cell(x, h))
    total = meter.budget(dt=1.0).total
    assert total.synops_ac + total.synops_mac == 150
    assert theirs["Effective_ACs"] + theirs["Effective_MACs"] == 150


class TestMeantDifferences:
    """Each with its number; docs/energy.md says why."""

    def test_gate_products_are_neuron_updates_here(self) -> None:
        hidden, x, h = 5, torch.rand(B, 7), torch.rand(B, 5)
        torch.manual_seed(0)
        for cell, state in ((nn.LSTMCell(7, hidden), (h, h)), (nn.GRUCell(7, hidden), h)):
            with EnergyMeter(cell) as meter:
                theirs = neurobench(cell, lambda: cell(x, state))  # noqa: B023
            total = meter.budget(dt=1.0).total
            gates = {"LSTMCell": 4, "GRUCell": 3}[type(cell).__name__]
            assert total.synops_mac == gates * hidden * (7 + 5)
            assert theirs["Effective_MACs"] - total.synops_mac == 3 * hidden
            assert total.neuron_updates == hidden

    def test_spikes_of_one_other_size_are_spikes_here_and_analog_there(self) -> None:
        net = nn.Linear(4, 3)
        budget, theirs = both(net, torch.tensor([0.0, 0.3, 0.3, 0.0]).expand(1, B, 4))
        assert (budget.total.synops_ac, budget.total.synops_mac) == (6, 0)
        assert (theirs["Effective_ACs"], theirs["Effective_MACs"]) == (0, 6)

    def test_the_split_is_decided_on_the_whole_here_and_on_each_call_there(self) -> None:
        net = nn.Linear(4, 3)
        inputs = torch.stack([torch.ones(B, 4), torch.full((B, 4), 0.5)])
        budget, theirs = both(net, inputs)
        assert (budget.total.synops_ac, budget.total.synops_mac) == (0, 24)
        assert (theirs["Effective_ACs"], theirs["Effective_MACs"]) == (12, 12)

    def test_one_to_one_recurrence_is_counted_here(self) -> None:
        lif = snn.RLeaky(beta=0.9, V=1.0, all_to_all=False, threshold=0.1, init_hidden=True)
        net = nn.Sequential(nn.Linear(4, 6), lif)
        with torch.no_grad():
            net[0].weight.fill_(1.0)
        budget, theirs = both(net, torch.ones(T, B, 4))
        recurrent = next(row for row in budget.layers if row.name == "1.recurrent")
        assert recurrent.synops_ac > 0
        ours = budget.total.synops_ac + budget.total.synops_mac - recurrent.synops_ac
        assert ours == theirs["Effective_ACs"] + theirs["Effective_MACs"]

    def test_transposed_convolutions_and_average_pooling_are_counted_here(self) -> None:
        net = nn.Sequential(nn.ConvTranspose2d(1, 1, 3), nn.AvgPool2d(2))
        budget, theirs = both(net, torch.ones(1, B, 1, 4, 4))
        assert (budget.layers[0].synops_ac, budget.layers[1].synops_mac) == (144, 36)
        assert theirs["Dense"] == 0

    def test_nan_is_refused_here_and_counted_there(self) -> None:
        net = nn.Linear(4, 3)
        x = torch.tensor([[math.nan, 1.0, 1.0, 1.0]])
        assert neurobench(net, lambda: net(x), 1)["Effective_MACs"] == 12
        with EnergyMeter(net) as meter:
            net(x)
        with pytest.raises(ValueError, match="NaN"):
            meter.budget(dt=1.0)
