"""Models as the libraries' own tutorials write them, each wrapped with at most one more argument.

The oracle of each is the loop that its tutorial writes: over timesteps outside of the model, or one
call of a model that loops by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from snntorch import surrogate
from snntorch.functional import quant
from torch import Tensor, nn
from torch.nn import functional

from dynvision_snn import EnergyMeter, Presentation, describe, wrap
from dynvision_snn.errors import WrapError
from dynvision_snn.losses import EnergyLoss

T, B, CLASSES = 6, 3, 4
IMAGE = (1, 8, 8)
DT = 1.0

Decoded = tuple[Tensor, Tensor | None]


def leaky(beta: float = 0.9, **options: Any) -> snn.Leaky:
    given = {"threshold": 0.3, "spike_grad": surrogate.fast_sigmoid(slope=25)}
    return snn.Leaky(beta, **{**given, **options})


def shown(seed: int = 0) -> Tensor:
    """``[T, B, 1, 8, 8]``, another image at every timestep."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(T, B, *IMAGE, generator=generator)


# -- snnTorch, called once per timestep -----------------------------------------------------------


def convolutional() -> nn.Module:
    """A convolutional classifier in one Sequential; the last layer returns spikes and membrane."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.MaxPool2d(2),
        leaky(init_hidden=True),
        nn.Flatten(),
        nn.Linear(4 * 3 * 3, CLASSES),
        leaky(init_hidden=True, output=True),
    )


class StepWithStates(nn.Module):
    """Membranes handed in and out at every timestep, the loop outside."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, 16), leaky()
        self.fc2, self.lif2 = nn.Linear(16, CLASSES), leaky()

    def forward(self, x: Tensor, mem1: Any = None, mem2: Any = None) -> tuple[Tensor, ...]:
        mem1 = self.lif1.reset_mem() if mem1 is None else mem1
        mem2 = self.lif2.reset_mem() if mem2 is None else mem2
        spk1, mem1 = self.lif1(self.fc1(x.flatten(1)), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return spk2, mem1, mem2


def loop_with_states(net: Any, inputs: Tensor) -> Decoded:
    membranes, spikes, states = [], [], (None, None)
    for x in inputs:
        spk, *states = net(x, *states)
        spikes.append(spk)
        membranes.append(states[-1])
    return torch.stack(membranes), torch.stack(spikes)


def population_coded() -> nn.Module:
    """Several readout neurons vote for each class."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 16),
        leaky(init_hidden=True),
        nn.Linear(16, 5 * CLASSES),
        leaky(init_hidden=True, output=True),
    )


def loop_of_population(net: Any, inputs: Tensor) -> Decoded:
    membranes, spikes = loop_hidden(net, inputs)
    classes = range(CLASSES)
    return (
        torch.stack([membranes[..., 5 * c : 5 * c + 5].mean(-1) for c in classes], -1),
        torch.stack([spikes[..., 5 * c : 5 * c + 5].sum(-1) for c in classes], -1),
    )


def quantised() -> nn.Module:
    """Membranes held at 16 levels."""
    levels = quant.state_quant(num_bits=4, uniform=True, threshold=0.3)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 16),
        leaky(init_hidden=True, state_quant=levels),
        nn.Linear(16, CLASSES),
        leaky(init_hidden=True, state_quant=levels, output=True),
    )


def graded() -> nn.Module:
    """Spikes of a learned size."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 16),
        leaky(init_hidden=True, graded_spikes_factor=2.5, learn_graded_spikes_factor=True),
        nn.Linear(16, CLASSES),
        leaky(init_hidden=True, output=True),
    )


def loop_hidden(net: Any, inputs: Tensor) -> Decoded:
    for module in net.modules():
        if isinstance(module, snn.SpikingNeuron):
            module.reset_mem()
    spk_rec, mem_rec = zip(*(net(x) for x in inputs), strict=True)
    return torch.stack(mem_rec), torch.stack(spk_rec)


# -- snnTorch, the loop inside --------------------------------------------------------------------


class RecurrentRegression(nn.Module):
    """A recurrent hidden layer and a readout whose membrane is what is fitted, never reset."""

    def __init__(self) -> None:
        super().__init__()
        self.fc_in = nn.Linear(64, 12)
        self.rlif = snn.RLeaky(0.9, linear_features=12, threshold=0.3)
        self.fc_out = nn.Linear(12, CLASSES)
        self.li = leaky(reset_mechanism="none")

    def forward(self, x: Tensor) -> Tensor:
        spk, mem = self.rlif.init_rleaky()
        mem_out = self.li.init_leaky()
        mem_rec = []
        for step in range(x.size(0)):
            spk, mem = self.rlif(self.fc_in(x[step].flatten(1)), spk, mem)
            _, mem_out = self.li(self.fc_out(spk), mem_out)
            mem_rec.append(mem_out)
        return torch.stack(mem_rec)


class BatchFirst(nn.Module):
    """Sequences as they come from a loader: ``[B, T, ...]``."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(64, 16), leaky()
        self.fc2, self.lif2 = nn.Linear(16, CLASSES), leaky()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk_rec, mem_rec = [], []
        for step in range(x.shape[1]):
            spk1, mem1 = self.lif1(self.fc1(x[:, step].flatten(1)), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk_rec.append(spk2)
            mem_rec.append(mem2)
        return torch.stack(spk_rec, dim=1), torch.stack(mem_rec, dim=1)


def call_batch_first(net: Any, inputs: Tensor) -> Decoded:
    spikes, membranes = net(inputs.transpose(0, 1))
    return membranes.transpose(0, 1), spikes.transpose(0, 1)


class ConvolutionalLstm(nn.Module):
    """A spiking ConvLSTM over frames, and a Linear readout."""

    def __init__(self) -> None:
        super().__init__()
        self.sclstm = snn.SConv2dLSTM(1, 3, 3, max_pool=2, threshold=0.02)
        self.fc, self.lif = nn.Linear(3 * 4 * 4, CLASSES), leaky()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        syn, mem = self.sclstm.init_sconv2dlstm()
        mem_out = self.lif.init_leaky()
        spk_rec, mem_rec = [], []
        for step in range(x.size(0)):
            spk, syn, mem = self.sclstm(x[step], syn, mem)
            spk_out, mem_out = self.lif(self.fc(spk.flatten(1)), mem_out)
            spk_rec.append(spk_out)
            mem_rec.append(mem_out)
        return torch.stack(spk_rec), torch.stack(mem_rec)


def call_both(net: Any, inputs: Tensor) -> Decoded:
    spikes, membranes = net(inputs)
    return membranes, spikes


# -- Norse ----------------------------------------------------------------------------------------


class ConvNet(nn.Module):
    """The convolutional classifier of Norse's MNIST example: voltages of a leaky integrator."""

    def __init__(self) -> None:
        super().__init__()
        fast = norse.LIFParameters(method="super", alpha=torch.tensor(100.0))
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4 * 3 * 3, 12)
        self.lif0, self.lif1 = norse.LIFCell(p=fast), norse.LIFCell(p=fast)
        self.out = norse.LILinearCell(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        s0 = s1 = so = None
        voltages = []
        for frame in x:
            z, s0 = self.lif0(10 * self.conv(frame), s0)
            z = 10 * functional.max_pool2d(z, 2, 2)
            z, s1 = self.lif1(functional.relu(self.fc(z.flatten(1))), s1)
            v, so = self.out(z, so)
            voltages.append(v)
        return torch.stack(voltages)


class Memory(nn.Module):
    """The store-and-recall task's net: adapting recurrent neurons remember, an integrator tells."""

    def __init__(self) -> None:
        super().__init__()
        # The adaptation's default takes minutes; here it takes 50 ms.
        slow = norse.LSNNParameters(tau_adapt_inv=torch.tensor(20.0), beta=torch.tensor(0.5))
        self.layer = norse.LSNNRecurrentCell(64, 16, p=slow)
        self.readout = norse.LILinearCell(16, CLASSES)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        s_layer, s_out = (None, None) if state is None else state
        z, s_layer = self.layer(20 * x.flatten(1), s_layer)
        v, s_out = self.readout(z, s_out)
        return v, (s_layer, s_out)


def sequential_state() -> nn.Module:
    """A whole net in SequentialState, stepped, as in Norse's introduction."""
    return norse.SequentialState(
        nn.Conv2d(1, 4, 3),
        norse.LIFBoxCell(p=norse.LIFBoxParameters(v_th=torch.tensor(0.05))),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 3 * 3, CLASSES),
        norse.LICell(),
    )


class AutoRegression(nn.Module):
    """Lifted layers over whole sequences; the classes' voltages at every timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.net = norse.SequentialState(
            norse.Lift(nn.Flatten()),
            norse.Lift(nn.Linear(64, 12)),
            norse.LIFRecurrent(12, 12, p=norse.LIFParameters(v_th=torch.tensor(0.05))),
            norse.Lift(nn.Linear(12, CLASSES)),
            norse.LI(),
        )

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.net(x)
        return out


def loop_state(net: Any, inputs: Tensor) -> Decoded:
    state, outputs = None, []
    for x in inputs:
        out, state = net(x, state)
        outputs.append(out)
    return torch.stack(outputs), None


def call_alone(net: Any, inputs: Tensor) -> Decoded:
    return net(inputs), None


# -- the list -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tutorial:
    """A tutorial's model.

    Attributes:
        build: it.
        loop: its tutorial's own loop over ``[T, B, 1, 8, 8]``: what is decoded, and its spikes.
        readout: what is decoded.
        argument: the one argument beside dt that it needs, if any.
    """

    build: Callable[[], nn.Module]
    loop: Callable[[Any, Tensor], Decoded]
    readout: str
    argument: Mapping[str, Any] = field(default_factory=dict)

    def fresh(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return self.build()


TUTORIALS = {
    "convolutional": Tutorial(convolutional, loop_hidden, "5"),
    "step_with_states": Tutorial(StepWithStates, loop_with_states, "lif2"),
    "population_coded": Tutorial(population_coded, loop_of_population, "4", {"n_classes": CLASSES}),
    "quantised": Tutorial(quantised, loop_hidden, "4"),
    "graded": Tutorial(graded, loop_hidden, "4"),
    "recurrent_regression": Tutorial(RecurrentRegression, call_alone, "li"),
    "batch_first": Tutorial(BatchFirst, call_batch_first, "lif2"),
    "convolutional_lstm": Tutorial(ConvolutionalLstm, call_both, "lif"),
    "norse_conv_net": Tutorial(ConvNet, call_alone, "out"),
    "norse_memory": Tutorial(Memory, loop_state, "readout"),
    "norse_sequential_state": Tutorial(sequential_state, loop_state, "5"),
    "norse_lifted": Tutorial(AutoRegression, call_alone, "net.4"),
}

every_tutorial = pytest.mark.parametrize("tutorial", TUTORIALS.values(), ids=TUTORIALS.keys())


@every_tutorial
def test_it_runs_as_in_its_tutorial(tutorial: Tutorial):
    assert len(tutorial.argument) <= 1
    ours, theirs = tutorial.fresh(), tutorial.fresh()
    run = wrap(ours, dt=DT, engine="step", **tutorial.argument)(shown())
    membrane, spikes = tutorial.loop(theirs, shown())
    assert run.readout == tutorial.readout
    assert run.membrane.shape == (T, B, CLASSES)
    assert torch.equal(run.membrane, membrane)
    assert membrane.std() > 0
    if spikes is not None:
        assert torch.equal(run.spikes, spikes)
        assert spikes.any()
    run.membrane.square().mean().backward()
    membrane.square().mean().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        # Equal up to the order in which autograd sums what reaches one membrane.
        assert one.grad is None or torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-6)


@every_tutorial
def test_it_follows_a_presentation_learns_and_is_priced(tutorial: Tutorial):
    model = wrap(tutorial.fresh(), dt=DT, **tutorial.argument)
    presentation = Presentation("0111", dt=DT, reaction_time=1.0, idle_time=2.0)
    energy = EnergyLoss()
    energy.register_hooks(model)
    with EnergyMeter(model) as meter:
        run = model(shown()[0], presentation)
    assert run.membrane.shape == (4, B, CLASSES)
    (run.membrane.square().mean() + energy()).backward()
    budget = meter.budget()
    assert not budget.uncounted
    hidden = [row for row in budget.layers if row.kind not in ("Linear", "Conv2d")]
    assert sum(row.spikes for row in hidden) > 0, "nothing fired"
    # A weighted sum over all inputs of all layers is never more than the dense one.
    assert 0 < budget.total.synops_ac + budget.total.synops_mac <= budget.total.synops_dense


@every_tutorial
def test_it_can_be_described(tutorial: Tutorial):
    model = wrap(tutorial.fresh(), dt=DT, **tutorial.argument)
    found = describe(model, shown()[0])
    assert tutorial.readout in found.title
    assert {layer.name for layer in model.layers()} <= {row.name for row in found.layers}


class OverOneStaticImage(nn.Module):
    """The tutorials' first network: ``num_steps`` passes over one image."""

    def __init__(self, num_steps: int = 25) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.fc1, self.lif1 = nn.Linear(64, 16), leaky()
        self.fc2, self.lif2 = nn.Linear(16, CLASSES), leaky()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk_rec, mem_rec = [], []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x.flatten(1)), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk_rec.append(spk2)
            mem_rec.append(mem2)
        return torch.stack(spk_rec), torch.stack(mem_rec)


def test_a_loop_over_one_static_image_is_refused_with_what_can_be_done():
    net = OverOneStaticImage()
    with pytest.raises(WrapError, match=r"cannot follow a presentation.*EnergyMeter\(net\)") as why:
        wrap(net, dt=DT)(shown()[0], Presentation("0110", dt=DT))
    assert "Move the loop out (forward does one timestep)" in str(why.value)
    # What can be done, done: its energy as it is, ...
    with EnergyMeter(net) as meter:
        net(shown()[0])
    assert meter.budget(dt=DT).n_timesteps == 25
    # ... and the loop moved out, with the same weights.
    stepped = StepWithStates()
    stepped.load_state_dict(net.state_dict())
    run = wrap(stepped, dt=DT)(shown()[0].expand(25, *shown()[0].shape))
    assert torch.equal(run.membrane, net(shown()[0])[1])
