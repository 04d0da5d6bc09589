"""Nets as the libraries' tutorials, tasks and packages have them: planned, all of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from models import CLASSES, DT, leaky
from norse.torch.models.conv import ConvNet, ConvNet4
from snntorch import surrogate
from test_idioms import built, check_same, images
from test_layer_plans import BATCH, PRESENTATIONS, check_close
from torch import Tensor, nn
from torch.nn import functional

from dynvision_snn.energy.meter import EnergyMeter
from dynvision_snn.losses import EnergyLoss
from dynvision_snn.model import TimedModel, wrap

num_steps, batch_size = 6, BATCH
P = norse.LIFParameters(alpha=torch.tensor(100.0), v_th=torch.as_tensor(0.3))


# -- snnTorch -------------------------------------------------------------------------------------


class Tutorial5(nn.Module):
    """With the input indexed, so that it may change, and its own numbers of steps and samples."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, 16), leaky(beta=0.95)
        self.fc2, self.lif2 = nn.Linear(16, CLASSES), leaky(beta=0.95)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        spk2_rec = []
        mem2_rec = []
        for step in range(num_steps):
            cur1 = self.fc1(x[step].view(batch_size, -1))
            spk1, mem1 = self.lif1(cur1, mem1)
            cur2 = self.fc2(spk1)
            spk2, mem2 = self.lif2(cur2, mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)


class Flattened(Tutorial5):
    """The same, all of the input flattened first, first states of zeros on a weight's device."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.flatten(2)
        mem1 = torch.zeros(x.size(1), 16, device=self.fc1.weight.device)
        mem2 = torch.zeros(x.size(1), self.fc2.weight.shape[0])
        spk2_rec, mem2_rec = [], []
        for t, frame in enumerate(x):
            assert t < num_steps
            spk1, mem1 = self.lif1(self.fc1(frame), mem1)
            spk1 = functional.dropout(spk1, p=0.2, training=self.training)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec), torch.stack(mem2_rec)


class Tutorial7(nn.Module):
    """``forward_pass`` as a forward: a Sequential in a loop, reset first.

    Not by ``utils.reset``, which resets every neuron of the process, and fails at some of them.
    """

    def __init__(self) -> None:
        super().__init__()
        options: Any = {"beta": 0.9, "threshold": 0.3, "spike_grad": surrogate.atan()}
        self.net = nn.Sequential(
            nn.Conv2d(1, 3, 3),
            snn.Leaky(**options, init_hidden=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(27, CLASSES),
            snn.Leaky(**options, init_hidden=True, output=True),
        )

    def forward(self, data: Tensor) -> tuple[Tensor, Tensor]:
        spk_rec, mem_rec = [], []
        for module in self.net:
            if isinstance(module, snn.Leaky):
                module.reset_mem()
        for step in range(data.size(0)):
            spk_out, mem_out = self.net(data[step])
            spk_rec.append(spk_out)
            mem_rec.append(mem_out)
        return torch.stack(spk_rec), torch.stack(mem_rec)


class Nested(nn.Module):
    """One step, its states in one tuple of tuples that it makes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, 16), snn.Synaptic(0.9, 0.8, threshold=0.3)
        self.fc2, self.lif2 = nn.Linear(16, CLASSES), leaky()

    def init_state(self) -> Any:
        return self.lif1.init_synaptic(), self.lif2.init_leaky()

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        if state is None:
            state = self.init_state()
        (syn1, mem1), mem2 = state
        spk1, syn1, mem1 = self.lif1(self.fc1(x.view(x.size(0), -1)), syn1, mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return spk2, ((syn1, mem1), mem2)


class Named(Nested):
    """The same, in a dict."""

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        if state is None:
            syn, mem = self.lif1.reset_mem()
            state = {"syn": syn, "mem1": mem, "mem2": self.lif2.reset_mem()}
        spk, syn, mem1 = self.lif1(self.fc1(x.flatten(1)), state["syn"], state["mem1"])
        spk, mem2 = self.lif2(self.fc2(spk), state["mem2"])
        return spk, {"syn": syn, "mem1": mem1, "mem2": mem2}


class Recurrent(nn.Module):
    """One step of a recurrent layer, whose spikes are part of its state."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, 16)
        self.rlif = snn.RLeaky(0.9, linear_features=16, threshold=0.3)
        self.fc2, self.lif = nn.Linear(16, CLASSES), leaky()

    def forward(self, x: Tensor, spk1: Any = None, mem1: Any = None, mem2: Any = None) -> Any:
        if mem1 is None:
            spk1, mem1 = self.rlif.init_rleaky()
            mem2 = self.lif.init_leaky()
        spk1, mem1 = self.rlif(self.fc1(torch.flatten(x, 1)), spk1, mem1)
        spk2, mem2 = self.lif(self.fc2(spk1), mem2)
        return spk2, spk1, mem1, mem2


class Residual(nn.Module):
    """Spikes that go around a block, and a global average."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(1, 3, 3, padding=1), leaky(init_hidden=True)
        self.conv2, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.lif2, self.fc = leaky(init_hidden=True), nn.Linear(3, CLASSES)
        self.lif3 = leaky(init_hidden=True, output=True)

    def forward(self, x: Tensor) -> Any:
        spk = self.lif1(self.conv1(x))
        spk = self.lif2(self.bn(self.conv2(spk)) + spk)
        pooled = functional.adaptive_avg_pool2d(spk, 1).squeeze(-1).squeeze(-1)
        return self.lif3(self.fc(3 * pooled))


# -- Norse ----------------------------------------------------------------------------------------


class Mnist(nn.Module):
    """Of its MNIST tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.input_features = 64
        self.l1 = norse.LIFRecurrentCell(64, 16, p=P)
        self.fc_out = nn.Linear(16, CLASSES, bias=False)
        self.out = norse.LICell()

    def forward(self, x: Tensor) -> Tensor:
        seq_length, _batch_size, _, _, _ = x.shape
        s1 = so = None
        voltages = []
        for ts in range(seq_length):
            z = x[ts, :, :, :].view(-1, self.input_features)
            z, s1 = self.l1(z, s1)
            z = self.fc_out(z)
            vo, so = self.out(z, so)
            voltages += [vo]
        return torch.stack(voltages)


class OneStep(nn.Module):
    """A dict of states that the forward fills in."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(64, 16), norse.LIFCell(P)
        self.out, self.li = nn.Linear(16, CLASSES), norse.LICell()

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        if state is None:
            state = dict(lif=None, li=None)
        z, state["lif"] = self.lif(30 * self.fc(x.view(x.shape[0], -1)), state["lif"])
        v, state["li"] = self.li(self.out(z), state["li"])
        return v, state


NETS: dict[str, Callable[[], nn.Module]] = {
    "snnTorch, tutorial 5": Tutorial5,
    "snnTorch, flattened": Flattened,
    "snnTorch, tutorial 7": Tutorial7,
    "snnTorch, nested states": Nested,
    "snnTorch, named states": Named,
    "snnTorch, recurrent": Recurrent,
    "snnTorch, residual": Residual,
    "Norse, MNIST": Mnist,
    "Norse, one step": OneStep,
}
every_net = pytest.mark.parametrize("name", NETS)


def both(build: Callable[[], nn.Module]) -> tuple[TimedModel, TimedModel]:
    step, layer = (built(build).eval() for _ in range(2))
    return wrap(step, dt=DT, engine="step"), wrap(layer, dt=DT, engine="layer")


@every_net
def test_it_is_the_step_engines_run(name: str) -> None:
    step, layer = both(NETS[name])
    check_same(step, layer, (images(None), None))
    assert "timestep by timestep" not in layer.explain()
    assert "as it is" not in layer.explain()


@every_net
def test_energy_is_the_same(name: str) -> None:
    presentation = PRESENTATIONS["constant"]  # of as many timesteps as tutorial 5 has
    losses, totals = [], []
    for model in both(NETS[name]):
        energy = EnergyLoss(reduction="mean", p=1)
        energy.register_hooks(model)
        with EnergyMeter(model) as meter:
            model(images(presentation), presentation)
        losses.append(energy())
        totals.append(
            [
                (row.name, row.spikes, row.synops_ac, row.synops_mac, row.neuron_updates)
                for row in meter.budget().layers
            ]
        )
    check_close(losses[1], losses[0])
    assert losses[0] > 0
    assert totals[1] == totals[0]


@pytest.mark.parametrize("build", [ConvNet, ConvNet4])
def test_norses_own_convolutional_nets(build: Callable[[], nn.Module]) -> None:
    step, layer = both(build)
    inputs = 40 * torch.rand(8, 2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    check_same(step, layer, (inputs, None))
    assert "timestep by timestep" not in layer.explain()
    runs = [model(inputs, record=["lif0", "lif2"]) for model in (step, layer)]
    for neurons in ("lif0", "lif2"):
        spikes = [run.layers[neurons].spikes for run in runs]
        assert torch.equal(*spikes)
        assert spikes[0].any()
