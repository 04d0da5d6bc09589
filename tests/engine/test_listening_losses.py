"""Losses that listen to a model have the same value and gradient under both engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from test_recomputing import NETS
from torch import Tensor, nn

import dynvision_snn as dvs
from dynvision_snn.losses import EnergyLoss, SynopsLoss
from dynvision_snn.observation import Attachment, Listener, Observation, watchable


def recurrent(**options: object) -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(6, 9), snn.RLeaky(0.9, init_hidden=True, **options)),
        *(nn.Linear(9, 3), snn.Leaky(0.9, init_hidden=True, output=True)),
    )


def worth(factor: float | Tensor, **options: bool) -> nn.Module:
    lif = snn.Leaky(0.9, init_hidden=True, graded_spikes_factor=factor, **options)
    last = snn.Leaky(0.9, init_hidden=True, output=True)
    return nn.Sequential(nn.Linear(6, 9), lif, nn.Linear(9, 3), last)


FURTHER = {
    "all to all": lambda: recurrent(linear_features=9),
    "one to one": lambda: recurrent(all_to_all=False, V=-0.5),
    "Norse, twice": lambda: norse.SequentialState(
        norse.LIFRecurrentCell(6, 9, dt=0.001),
        norse.LIFRecurrentCell(9, 9, dt=0.001),
        *(nn.Linear(9, 3), norse.LICell(dt=0.001)),
    ),
    "worth -2, which is learnt": lambda: worth(-2.0, learn_graded_spikes_factor=True),
    "worth otherwise by unit": lambda: worth(torch.linspace(-1, 1, 9)),
}
LOSSES = {
    "activity": EnergyLoss,
    "Euclidean activity": lambda: EnergyLoss(p=2),
    "synaptic operations": SynopsLoss,
    "joules": lambda: SynopsLoss(profile="45nm-fp32"),
}


def taken(
    build: Callable[[], nn.Module], engine: str, loss: Callable[[], nn.Module], idle_time: float
) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = dvs.wrap(build(), dt=1.0, engine=engine)
    criterion = loss()
    criterion.register_hooks(model)
    images = torch.rand(5, 6, generator=torch.Generator().manual_seed(1)) * 4
    torch.manual_seed(2)
    for _ in range(2):  # the second run is the first one again
        run = model(
            images, dvs.Presentation("0111101", dt=1.0, n_timesteps=14, idle_time=idle_time)
        )
        value = criterion(None, None)
    piece = model(images, dvs.Presentation("1", dt=1.0, n_timesteps=3), state=run.state)
    assert piece.membrane.isfinite().all()
    value = value + criterion(None, None)
    value.backward()
    grads = {name: p.grad for name, p in model.net.named_parameters() if p.grad is not None}
    return value.detach(), grads


@pytest.mark.parametrize("idle_time", [0.0, 3.0])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", [*NETS, *FURTHER])
def test_the_gradient_of_a_listening_loss_is_that_of_the_step_engine(
    name: str, loss: str, idle_time: float
) -> None:
    build = (NETS | FURTHER)[name]
    expected, theirs = taken(build, "step", LOSSES[loss], idle_time)
    value, mine = taken(build, "layer", LOSSES[loss], idle_time)
    torch.testing.assert_close(value, expected)
    assert mine.keys() == theirs.keys()
    assert any(grad.any() for grad in theirs.values())
    largest = max(float(grad.abs().max()) for grad in theirs.values())
    for key, grad in mine.items():
        scale = max(float(theirs[key].abs().max()), 0.05 * largest)
        torch.testing.assert_close(grad, theirs[key], rtol=0, atol=1e-4 * scale, msg=key)


@pytest.mark.parametrize("engine", ["step", "layer"])
def test_padding_is_no_activity(engine: str) -> None:
    """Samples of different lengths, against each by itself."""
    torch.manual_seed(0)
    model = dvs.wrap(recurrent(linear_features=9), dt=1.0, engine=engine)
    energy = EnergyLoss(reduction="none")
    energy.register_hooks(model)
    images = 4 * torch.rand(3, 6)
    shown = [dvs.Presentation("0111", dt=1.0, n_timesteps=n) for n in (4, 9, 6)]
    model(images, dvs.PresentationBatch(shown))
    found = energy.compute_loss()
    for k, presentation in enumerate(shown):
        model(images[k : k + 1], presentation)
        torch.testing.assert_close(found[k : k + 1], energy.compute_loss())


@pytest.mark.parametrize("engine", ["step", "layer"])
def test_the_norm_may_be_chosen_later(engine: str) -> None:
    values = []
    for p in (1, 2):
        torch.manual_seed(0)
        model = dvs.wrap(recurrent(linear_features=9), dt=1.0, engine=engine)
        energy = EnergyLoss(p=p)
        energy.register_hooks(model)
        energy.p = 2.0
        model(4 * torch.rand(7, 5, 6))
        values.append(energy(None, None))
    assert torch.equal(*values)


SEQUENCES = {
    "RNN": (lambda: nn.RNN(6, 9), lambda: nn.RNNCell(6, 9)),
    "GRU": (lambda: nn.GRU(6, 9), lambda: nn.GRUCell(6, 9)),
    "LSTM": (lambda: nn.LSTM(6, 9), lambda: nn.LSTMCell(6, 9)),
    "LSTM of two layers": (
        lambda: nn.LSTM(6, 9, num_layers=2),
        lambda: nn.ModuleList([nn.LSTMCell(6, 9), nn.LSTMCell(9, 9)]),
    ),
    "LIFRecurrent": (
        lambda: norse.LIFRecurrent(6, 9, dt=0.001),
        lambda: norse.LIFRecurrentCell(6, 9, dt=0.001),
    ),
}


def stepped(cells: nn.Module, inputs: Tensor) -> None:
    layers = cells if isinstance(cells, nn.ModuleList) else [cells]
    states = [None] * len(layers)
    for x in inputs:
        for k, cell in enumerate(layers):
            returned = cell(x) if states[k] is None else cell(x, states[k])
            of_norse = isinstance(cell, norse.LIFRecurrentCell)
            states[k] = returned[1] if of_norse else returned
            x = returned[0] if isinstance(returned, tuple) else returned


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_layer_of_whole_sequences_has_the_gradient_of_its_cells(name: str) -> None:
    sequence, cells = (build() for build in SEQUENCES[name])
    for mine, other in zip(sequence.parameters(), cells.parameters(), strict=True):
        mine.data.copy_(other.data)
    inputs = 4 * torch.randn(7, 5, 6, generator=torch.Generator().manual_seed(0))
    values = []
    for net in (sequence, cells):
        loss = SynopsLoss(relative=False)
        loss.register_hooks(net, sequence=net is sequence)
        net(inputs) if net is sequence else stepped(net, inputs)
        values.append(loss(None, None))
        values[-1].backward()
        loss.remove_hooks()
    torch.testing.assert_close(*values)
    for mine, other in zip(sequence.parameters(), cells.parameters(), strict=True):
        assert other.grad is not None or mine.grad is None
        if other.grad is not None:
            assert other.grad.any()
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-4)


class Told(Listener):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Observation] = []

    def observe(self, observation: Observation) -> None:
        self.told.append(observation)


class Hearing(Told):
    hears_activity = True
    hears_inputs: ClassVar[bool] = False


def test_who_hears_activities_is_told_those_of_whole_observations_of_spikes() -> None:
    model = dvs.wrap(recurrent(linear_features=9), dt=1.0, engine="layer")
    listeners = [Hearing(), Told()]
    modules = [item for item in watchable(model) if item.name]
    attachments = [Attachment(model, listener, modules) for listener in listeners]
    model(4 * torch.rand(7, 5, 6))
    heard, other = (listener.told for listener in listeners)
    spiking = [told for told in heard if told.layer is not None]
    assert len(spiking) == 2
    for told in spiking:
        assert told.output.any()
        torch.testing.assert_close(told.activity, told.output.abs().sum((0, 2)))
        assert told.part(2, 5).activity is None
    assert all(told.activity is None for told in heard if told.layer is None)
    assert all(told.activity is None for told in other)
    assert all(told.inputs is None for told in heard)
    assert all(told.inputs is not None for told in other)
    for attachment in attachments:
        attachment.close()
