"""Runs whose blocks of memory would be too large: in stretches, the same numbers."""

from __future__ import annotations

import pytest
import torch
from test_recomputing import NETS, found
from torch import Tensor, nn

import dynvision_snn as dvs
from dynvision_snn.engine import choosing
from dynvision_snn.observation import Attachment, Listener, Observation, watchable

# Of 5 samples with at most 9 float32 values each.
TIMESTEP = 5 * 9 * 4


class Lengths(Listener):
    """How many timesteps the observations of the first neuron layer have."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def observe(self, observation: Observation) -> None:
        self.seen.append(observation.t1 - observation.t0)


@pytest.mark.parametrize("idle_time", [0.0, 3.0])
@pytest.mark.parametrize("at_once", [1, 4, 20, 21])
@pytest.mark.parametrize("name", NETS)
def test_stretches_are_the_run(
    name: str, at_once: int, idle_time: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, theirs = found(NETS[name], "step", None, idle_time=idle_time)
    monkeypatch.setattr(choosing, "LARGEST_BLOCK", at_once * TIMESTEP)
    numbers, mine = found(NETS[name], "layer", None, idle_time=idle_time)
    assert numbers.keys() == expected.keys()
    for key, value in numbers.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5, msg=key)
    assert mine["layers"] == theirs["layers"]


@pytest.mark.parametrize(("at_once", "lengths"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7])])
def test_a_stretch_is_as_long_as_a_block_holds(
    at_once: int, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "LARGEST_BLOCK", at_once * TIMESTEP)
    model = dvs.wrap(NETS["hidden states"](), dt=1.0, engine="layer")
    listener = Lengths()
    first = [w for w in watchable(model) if w.layer is not None][:1]
    attachment = Attachment(model, listener, first)
    model(torch.rand(5, 6), dvs.Presentation("1", dt=1.0, n_timesteps=7))
    assert listener.seen == lengths
    attachment.close()


class Looping(nn.Module):
    """A time loop of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = NETS["hidden states"]()

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.net(step)[-1] for step in x])


def test_a_time_loop_of_its_own_that_would_need_stretches_runs_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, inputs = Looping(), torch.rand(7, 5, 6)
    monkeypatch.setattr(choosing, "LARGEST_BLOCK", 6 * TIMESTEP)
    short, long = (dvs.wrap(net, dt=1.0) for _ in range(2))
    short(inputs[:6])
    assert short.explain().startswith("layer by layer")
    run = long(inputs)
    assert "of its 7 timesteps no more than 6 fit into a block" in long.explain()
    assert torch.equal(run.membrane, dvs.wrap(net, dt=1.0, engine="step")(inputs).membrane)
    forced = dvs.wrap(net, dt=1.0, engine="layer")
    torch.testing.assert_close(forced(inputs).membrane, run.membrane)
