"""Agreement of the value-weighted sums with sinabs' analyzer, and differences that are meant."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynvision_snn.energy import EnergyMeter

synopcounter = pytest.importorskip("sinabs.synopcounter", reason="sinabs is not installed")


def sinabs(net: nn.Module, *batches: Tensor) -> dict[str, float]:
    """Synaptic operations per sample, by layer, averaged over batches."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        analyzer = synopcounter.SNNAnalyzer(net)
    with torch.no_grad():
        for x in batches:
            net(x)
    found = {
        name: float(module.accumulated_synops) / module.n_batches
        for name, module in net.named_modules()
        if hasattr(module, "accumulated_synops")
    }
    for handle in analyzer.handles:
        handle.remove()
    return found


def ours(net: nn.Module, *batches: Tensor) -> dict[str, float]:
    with EnergyMeter(net) as meter, torch.no_grad():
        for x in batches:
            net(x)
            meter.next_run()
    return {row.name: row.synops_weighted for row in meter.budget(dt=1.0).layers}


def test_its_figures() -> None:
    linear = nn.Linear(3, 5, bias=False)
    with torch.no_grad():
        linear.weight.fill_(1.0)
    first, second = torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([[0.0, 1.0, 4.0]])
    net = nn.Sequential(linear)
    assert ours(net, first)["0"] == sinabs(net, first)["0"] == 20
    assert ours(net, first, second)["0"] == sinabs(net, first, second)["0"] == 22.5
    conv = nn.Sequential(nn.Conv2d(1, 5, 2, bias=False))
    eye = torch.eye(3)[None, None]
    assert ours(conv, eye)["0"] == sinabs(conv, eye)["0"] == 30


@settings(max_examples=25)
@given(
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    kernel=st.integers(1, 3),
    groups=st.integers(1, 2),
    seed=st.integers(0, 2**31),
)
def test_random_conv_nets(stride: int, padding: int, kernel: int, groups: int, seed: int) -> None:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    conv = nn.Conv2d(2, 4, kernel, stride, padding, groups=groups)
    net = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
    x = torch.rand(3, 2, 7, 7, generator=generator) * 3
    x = x * (torch.rand(x.shape, generator=generator) < 0.4)
    net(x)
    theirs = sinabs(net, x)
    found = ours(net, x)
    for name in ("0", "3"):
        assert found[name] == pytest.approx(theirs[name], rel=1e-5)


def test_zero_weights_are_left_out_here() -> None:
    net = nn.Sequential(nn.Linear(3, 4))
    with torch.no_grad():
        net[0].weight[:, 0] = 0
    x = torch.ones(2, 3)
    assert ours(net, x)["0"] == 8
    assert sinabs(net, x)["0"] == 12


def test_padding_that_repeats_inputs_is_counted_here() -> None:
    net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"))
    x = torch.ones(1, 1, 4, 4)
    assert ours(net, x)["0"] == 9 * 16
    assert sinabs(net, x)["0"] == 100
