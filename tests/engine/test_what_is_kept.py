"""What stays of a run that is run by layer: for the backward, and in its state."""

from __future__ import annotations

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn

import dynvision_snn as dvs
from dynvision_snn.adapters.base import map_tensors


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(6, 9), nn.Linear(9, 3)
        self.hidden = snn.RLeaky(0.9, linear_features=9, init_hidden=True)
        self.lif = snn.Leaky(0.8, init_hidden=True, output=True)

    def forward(self, x):
        return self.lif(self.out(self.hidden(self.fc(x))))


def norse_recurrent() -> nn.Module:
    return norse.SequentialState(
        norse.LIFRecurrentCell(6, 9, dt=0.001), nn.Linear(9, 3), norse.LICell(dt=0.001)
    )


@pytest.mark.parametrize("build", [Recurrent, norse_recurrent])
def test_a_state_does_not_hold_on_to_the_timesteps_before_it(build):
    model = dvs.wrap(build(), dt=1.0, engine="layer")
    with torch.inference_mode():
        state = model(torch.rand(50, 2, 6)).state
    found = []
    map_tensors(lambda tensor: found.append(tensor) or tensor, (state.passed, dict(state.held)))
    assert {tensor.shape[-1] for tensor in found} == {9, 3}
    for tensor in found:
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
