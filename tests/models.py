"""Small models written in every style met in the wild, each with the loop its library would run.

A `Style` builds a fresh model and knows the `oracle`: the loop that the library's own tutorials
would write, on ``[T, B, features]``. It returns the decoded values over time, and the spikes of the
readout where it spikes, both ``[T, B, classes]``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import norse.torch as norse
import snntorch as snn
import torch
from snntorch import surrogate
from torch import Tensor, nn

FEATURES, HIDDEN, CLASSES = 5, 7, 4
DT = 1.0  # ms, Norse's own timestep

Decoded = tuple[Tensor, Tensor | None]


def leaky(**options: Any) -> snn.Leaky:
    """A neuron that fires at the inputs of these tests, with a gradient at silent units too."""
    given = {"beta": 0.9, "threshold": 0.3, "spike_grad": surrogate.fast_sigmoid(slope=5)}
    return snn.Leaky(**{**given, **options})


def reset_snntorch(net: nn.Module) -> None:
    """What a user's loop does before each sequence, without the library's process-wide reset."""
    for module in net.modules():
        if isinstance(module, snn.SpikingNeuron):
            module.reset_mem()


# -- one timestep per call ------------------------------------------------------------------------


def sequential_init_hidden() -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, HIDDEN),
        leaky(init_hidden=True),
        nn.Linear(HIDDEN, CLASSES),
        leaky(init_hidden=True, output=True),
    )


def nested_init_hidden() -> nn.Module:
    block = nn.Sequential(nn.Linear(FEATURES, HIDDEN), leaky(init_hidden=True))
    return nn.Sequential(
        nn.Sequential(block, nn.Dropout(0.0)),
        nn.Linear(HIDDEN, CLASSES),
        leaky(init_hidden=True),  # spikes alone: the membrane stays in the module
    )


def loop_init_hidden(net: Any, inputs: Tensor) -> Decoded:
    reset_snntorch(net)
    membranes, spikes = [], []
    for x in inputs:
        output = net(x)
        spikes.append(output[0] if isinstance(output, tuple) else output)
        membranes.append(net[-1].mem)
    return torch.stack(membranes), torch.stack(spikes)


class ExplicitStates(nn.Module):
    """``spk, mem1, mem2 = net(x, mem1, mem2)``, the states required."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(FEATURES, HIDDEN), leaky()
        self.fc2, self.lif2 = nn.Linear(HIDDEN, CLASSES), leaky(reset_mechanism="zero")

    def forward(self, x: Tensor, mem1: Any, mem2: Any) -> tuple[Tensor, Tensor, Tensor]:
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return spk2, mem1, mem2


def loop_explicit_states(net: Any, inputs: Tensor) -> Decoded:
    batch = len(inputs[0])
    mem1, mem2 = torch.zeros(batch, HIDDEN), torch.zeros(batch, CLASSES)
    membranes, spikes = [], []
    for x in inputs:
        spk, mem1, mem2 = net(x, mem1, mem2)
        membranes.append(mem2)
        spikes.append(spk)
    return torch.stack(membranes), torch.stack(spikes)


class DictOfStates(nn.Module):
    """``out, state = net(x, state=None)``, the state a dict of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif = nn.Linear(FEATURES, HIDDEN), norse.LIFCell()
        self.fc2, self.li = nn.Linear(HIDDEN, CLASSES), norse.LICell()

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, dict[str, Any]]:
        state = {} if state is None else state
        z, lif = self.lif(100 * self.fc1(x), state.get("lif"))
        v, li = self.li(self.fc2(z), state.get("li"))
        return v, {"lif": lif, "li": li}


class NorseList(nn.Module):
    """``out, states = net(x, s)`` where the list of states is changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(FEATURES, HIDDEN), norse.LIFRecurrentCell(HIDDEN, HIDDEN)
        self.out, self.li = nn.Linear(HIDDEN, CLASSES), norse.LICell()

    def forward(self, x: Tensor, s: Any = None) -> tuple[Tensor, list[Any]]:
        s = [None, None] if s is None else s
        z, s[0] = self.lif(100 * self.fc(x), s[0])
        v, s[1] = self.li(self.out(z), s[1])
        return v, s


def sequential_state_of_cells() -> nn.Module:
    return norse.SequentialState(
        nn.Linear(FEATURES, HIDDEN),
        Amplify(100.0),
        norse.LIFCell(),
        nn.Linear(HIDDEN, CLASSES),
        norse.LICell(),
    )


class Amplify(nn.Module):
    """A fixed gain, since Norse scales input currents by ``dt / tau``."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x


def loop_state(net: Any, inputs: Tensor) -> Decoded:
    state, outputs = None, []
    for x in inputs:
        out, state = net(x, state)
        outputs.append(out)
    return torch.stack(outputs), None


class GruStep(nn.Module):
    """A non-spiking baseline: what is decoded is the Linear's output."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.fc = nn.GRUCell(FEATURES, HIDDEN), nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = self.gru(x, h)
        return self.fc(h), h


class LstmStep(nn.Module):
    """The state is a pair: ``out, (h, c) = net(x, state)``."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTMCell(FEATURES, HIDDEN), nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = self.lstm(x, state)
        return self.fc(h), (h, c)


class ConvStep(nn.Module):
    """Features as an image, one step, state inside the neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lif1 = nn.Conv1d(1, 3, 2), leaky(init_hidden=True)
        self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout(0.2)
        self.fc, self.lif2 = nn.Linear(3 * (FEATURES - 1), CLASSES), leaky(init_hidden=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lif1(self.norm(self.conv(x.unsqueeze(1))))
        return self.lif2(self.fc(self.drop(x).flatten(1)))


def loop_conv(net: Any, inputs: Tensor) -> Decoded:
    reset_snntorch(net)
    membranes, spikes = [], []
    for x in inputs:
        spikes.append(net(x))
        membranes.append(net.lif2.mem)
    return torch.stack(membranes), torch.stack(spikes)


# -- the whole sequence per call ------------------------------------------------------------------


def sequential_state_lifted() -> nn.Module:
    return norse.SequentialState(
        norse.Lift(nn.Linear(FEATURES, HIDDEN)),
        Amplify(100.0),
        norse.LIF(),
        norse.Lift(nn.Linear(HIDDEN, CLASSES)),
        norse.LI(),
    )


class DropState(nn.Module):
    """Between a Norse layer and a layer without a state, in a plain Sequential."""

    def forward(self, pair: tuple[Tensor, Any]) -> Tensor:
        return pair[0]


def plain_sequential_lifted() -> nn.Module:
    return nn.Sequential(
        norse.Lift(nn.Linear(FEATURES, HIDDEN)),
        Amplify(100.0),
        norse.LIF(),
        DropState(),
        norse.Lift(nn.Linear(HIDDEN, CLASSES)),
        norse.LI(),
    )


def lifted_cells() -> nn.Module:
    return nn.Sequential(
        norse.Lift(nn.Linear(FEATURES, HIDDEN)),
        Amplify(100.0),
        norse.Lift(norse.LIFCell()),
        DropState(),
        nn.Linear(HIDDEN, CLASSES),  # over the whole [T, B, ...]
        norse.Lift(norse.LICell()),
    )


def call_once(net: Any, inputs: Tensor) -> Decoded:
    return net(inputs)[0], None


class LoopInside(nn.Module):
    """The tutorials' ``spk_rec, mem_rec = net(x)`` over ``[T, B, ...]``."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(FEATURES, HIDDEN), leaky()
        self.fc2, self.lif2 = nn.Linear(HIDDEN, CLASSES), leaky()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        spk_rec, mem_rec = [], []
        for step in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk_rec.append(spk2)
            mem_rec.append(mem2)
        return torch.stack(spk_rec, dim=0), torch.stack(mem_rec, dim=0)


class LoopInsideBatchFirst(nn.Module):
    """The same over ``[B, T, ...]``, membranes first, the Linear over all timesteps at once."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(FEATURES, HIDDEN), leaky(init_hidden=True)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, CLASSES), leaky()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        currents = self.fc1(x)
        spk_rec, mem_rec, mem = [], [], None
        for step in range(x.size(1)):
            spk, mem = self.lif2(self.fc2(self.lif1(currents[:, step])), mem)
            spk_rec.append(spk)
            mem_rec.append(mem)
        return torch.stack(mem_rec, dim=1), torch.stack(spk_rec, dim=1)


def call_loop_inside(net: Any, inputs: Tensor) -> Decoded:
    reset_snntorch(net)
    spikes, membranes = net(inputs)
    return membranes, spikes


def call_batch_first(net: Any, inputs: Tensor) -> Decoded:
    reset_snntorch(net)
    membranes, spikes = net(inputs.transpose(0, 1))
    return membranes.transpose(0, 1), spikes.transpose(0, 1)


class GruSequence(nn.Module):
    """torch's own sequence module, batch first, and a Linear over it."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.gru(x)
        return self.fc(hidden)


def call_gru(net: Any, inputs: Tensor) -> Decoded:
    return net(inputs.transpose(0, 1)).transpose(0, 1), None


def call_bare_gru(net: Any, inputs: Tensor) -> Decoded:
    return net(inputs)[0], None


# -- the list -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Style:
    """A way of writing a model.

    Attributes:
        build: a fresh model.
        oracle: the library's own loop.
        readout: what `wrap` should find; None where the output itself is decoded.
        stepping, time_axis: how it should be found to run.
        goes_on: whether a run can go on from another's state.
        norse: whether it has a timestep of its own.
    """

    build: Callable[[], nn.Module]
    oracle: Callable[[Any, Tensor], Decoded]
    readout: str | None
    stepping: str = "step"
    time_axis: int = 0
    goes_on: bool = True
    norse: bool = field(default=False, kw_only=True)

    def fresh(self, seed: int = 0) -> nn.Module:
        """A model with the weights that `seed` gives."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.build()


STYLES = {
    "sequential_init_hidden": Style(sequential_init_hidden, loop_init_hidden, "3"),
    "nested_init_hidden": Style(nested_init_hidden, loop_init_hidden, "2"),
    "explicit_states": Style(ExplicitStates, loop_explicit_states, "lif2"),
    "conv_step": Style(ConvStep, loop_conv, "lif2"),
    "dict_of_states": Style(DictOfStates, loop_state, "li", norse=True),
    "norse_list": Style(NorseList, loop_state, "li", norse=True),
    "sequential_state_of_cells": Style(sequential_state_of_cells, loop_state, "4", norse=True),
    "gru_step": Style(GruStep, loop_state, None),
    "lstm_step": Style(LstmStep, loop_state, None),
    "sequential_state_lifted": Style(
        sequential_state_lifted, call_once, "4", "sequence", norse=True
    ),
    "plain_sequential_lifted": Style(
        plain_sequential_lifted, call_once, "5", "sequence", goes_on=False, norse=True
    ),
    "lifted_cells": Style(
        lifted_cells, call_once, "5.lifted_module", "sequence", goes_on=False, norse=True
    ),
    "loop_inside": Style(LoopInside, call_loop_inside, "lif2", "sequence", goes_on=False),
    "loop_inside_batch_first": Style(
        LoopInsideBatchFirst, call_batch_first, "lif2", "sequence", 1, goes_on=False
    ),
    "gru_sequence": Style(GruSequence, call_gru, None, "sequence", 1, goes_on=False),
    "bare_gru": Style(lambda: nn.GRU(FEATURES, CLASSES), call_bare_gru, None, "sequence"),
}
