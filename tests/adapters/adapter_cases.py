"""Every class that the built-in adapters serve: how to build it, and an explicit loop over it.

An oracle runs the library by hand: it passes every state itself, keeps what each call returns, and
knows nothing of the adapters. Over 400 lines because it is one table of all classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import norse.torch as norse
import snntorch as snn
import torch
from torch import Tensor, nn

from dynvision_snn.adapters import Adapter, Adapters, Call, Reading, Role

T, B, N = 12, 3, 4


@dataclass
class Truth:
    """What a library's own loop yields: ``[T, ...]`` each."""

    output: Tensor
    membrane: Tensor | None = None
    state: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One class, in one configuration."""

    name: str
    cls: type[nn.Module]
    build: Callable[[], nn.Module]
    truth: Callable[[Any, Tensor], Truth]
    units: tuple[int, ...] = (N,)
    sequence: bool = False
    role: Role = Role.SPIKING
    membrane: str | None = "before"
    state: tuple[str, ...] = ()
    synapses: tuple[str, ...] = ()
    time_axis: int = 0
    scale: float = 2.0

    def module(self) -> nn.Module:
        torch.manual_seed(1)
        return self.build()

    def inputs(self) -> Tensor:
        """``[T, B, *units]``, strong enough to spike, silent in places."""
        generator = torch.Generator().manual_seed(2)
        values = torch.rand(T, B, *self.units, generator=generator)
        return self.scale * values * (values > 0.3)


@dataclass
class Seen:
    """What an adapter says of one call."""

    received: tuple[Tensor | None, ...]
    reading: Reading


@contextmanager
def watched(adapter: Adapter, module: nn.Module) -> Iterator[list[Seen]]:
    """Hooks as any listener has them."""
    seen: list[Seen] = []
    before: list[tuple[Tensor | None, ...]] = []

    def about(module: nn.Module, args: Any, kwargs: Any) -> None:
        before.append(adapter.presynaptic(module, args, kwargs))

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call = Call(args, kwargs, output)
        reading = adapter.read(module, call)
        received = before.pop()
        if received:
            received = adapter.presynaptic_sequence(module, received, call, reading)
        seen.append(Seen(received, reading))

    handles = (
        module.register_forward_pre_hook(about, with_kwargs=True),
        module.register_forward_hook(after, with_kwargs=True),
    )
    try:
        with adapter.recording(module):
            yield seen
    finally:
        for handle in handles:
            handle.remove()


def adapter_of(module: nn.Module) -> Adapter:
    layer = Adapters().layer(module)
    assert layer is not None
    return layer.adapter


def run(case: Case, module: nn.Module, inputs: Tensor) -> list[Seen]:
    """Runs the module as a user's loop does, leaving all state to it where it keeps any."""
    with watched(adapter_of(module), module) as seen:
        if case.sequence:
            module(inputs.transpose(0, 1) if case.time_axis else inputs)
            return seen
        state: Any = None
        for x in inputs:
            if type(module).__module__.startswith("snntorch"):
                module(*([x] if state is None else [x, state]))
                continue
            returned = module(x) if case.role is Role.ACTIVATION else module(x, state)
            is_pair = isinstance(returned, tuple) and not isinstance(module, nn.LSTMCell)
            state = returned[1] if is_pair else returned
    return seen


def over_time(case: Case, seen: list[Seen]) -> Reading:
    """All readings as one, time first."""
    readings = [item.reading for item in seen]
    if case.sequence:
        (reading,) = readings
        if not case.time_axis:
            return reading
        return Reading(reading.output.transpose(0, 1), reading.membrane, reading.state)
    membranes = [r.membrane for r in readings if r.membrane is not None]
    return Reading(
        torch.stack([r.output for r in readings]),
        torch.stack(membranes) if membranes else None,
        {name: torch.stack([r.state[name] for r in readings]) for name in readings[0].state},
    )


# -- oracles ------------------------------------------------------------------------------------


def stacked(outputs: list[Tensor], states: list[dict[str, Tensor]]) -> Truth:
    named = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    return Truth(torch.stack(outputs), named.pop("membrane", None), named)


def passing(*names: str) -> Callable[[Any, Tensor], Truth]:
    """snnTorch, every state passed by hand; `names` of what follows the spikes in a full return."""

    def truth(module: Any, inputs: Tensor) -> Truth:
        states = module.reset_mem()
        states = list(states) if isinstance(states, tuple) else [states]
        outputs, found = [], []
        for x in inputs:
            returned = module(x, *states)
            states = list(returned) if "spikes" in names else list(returned[1:])
            outputs.append(returned[0])
            found.append(dict(zip(names, states, strict=True)))
            found[-1].pop("spikes", None)
        return stacked(outputs, found)

    return truth


def of_delta(module: Any, inputs: Tensor) -> Truth:
    outputs, found, state = [], [], (None, None)
    for x in inputs:
        spikes, state = module(x, state)
        outputs.append(spikes)
        found.append({"membrane": state[0], "membrane_previous": state[1]})
    return stacked(outputs, found)


def of_kernel(module: Any, inputs: Tensor) -> Truth:
    """StateLeaky as the recursion that its convolution stands for."""
    drive = module.linear(inputs) if hasattr(module, "linear") else inputs
    decay = torch.exp(-1 / module.tau)
    membrane, membranes = torch.zeros_like(drive[0]), []
    for x in drive:
        membrane = decay * membrane + x
        membranes.append(membrane)
    membrane = torch.stack(membranes)
    spikes = (membrane > module.threshold).float() * module.graded_spikes_factor**2
    return Truth(spikes if module.output else membrane, membrane)


def of_rnn_neuron(module: Any, inputs: Tensor) -> Truth:
    rnn = module.rnn
    membrane, spikes = torch.zeros(B, rnn.hidden_size), []
    for x in inputs:
        drive = x @ rnn.weight_ih_l0.T + rnn.bias_ih_l0 + rnn.bias_hh_l0
        membrane = torch.relu(drive + membrane @ rnn.weight_hh_l0.T)
        spikes.append((membrane > module.threshold).float())
    return Truth(torch.stack(spikes))


def of_associative(module: Any, inputs: Tensor) -> Truth:
    """The first timesteps only, before it drifts."""
    state, spikes = torch.zeros(B, module.d_value, module.d_key), []
    for x in inputs:
        write = module.to_v(x)[:, :, None] * module.to_k(x)[:, None, :]
        state = state * torch.sigmoid(module.to_alpha(x))[:, None, :] + write
        spikes.append((state.flatten(1) > module.threshold).float())
    return Truth(torch.stack(spikes))


OURS = {"v": "membrane", "i": "current", "a": "adaptation", "b": "threshold"} | {
    "u": "recovery",
    "rho": "refractory",
}


def named(state: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in zip(state._fields, state, strict=True):
        if isinstance(value, tuple):
            found |= named(value)
        elif name != "z":
            found[OURS[name]] = value
    return found


def of_norse_cell(module: Any, inputs: Tensor) -> Truth:
    outputs, found, state = [], [], None
    for x in inputs:
        output, state = module(x, state)
        outputs.append(output)
        found.append(named(state))
    return stacked(outputs, found)


def of_norse_sequence(module: Any, inputs: Tensor) -> Truth:
    """The step function of the module, without its own loop."""
    weights = (
        (module.input_weights, module.recurrent_weights) if hasattr(module, "input_weights") else ()
    )
    outputs, found, state = [], [], module.initial_state(inputs)
    for x in inputs:
        output, state = module.activation(x, state, *weights, module.p, module.dt)
        outputs.append(output)
        found.append(named(state))
    return stacked(outputs, found)


def of_torch_cell(module: Any, inputs: Tensor) -> Truth:
    state, hidden, found = None, [], []
    for x in inputs:
        state = module(x, state)
        hidden.append(state[0] if isinstance(state, tuple) else state)
        found.append({"cell": state[1]} if isinstance(state, tuple) else {})
    return stacked(hidden, found)


def of_torch_sequence(module: Any, inputs: Tensor) -> Truth:
    return Truth(module(inputs)[0])


def of_activation(module: Any, inputs: Tensor) -> Truth:
    return Truth(torch.stack([module(x) for x in inputs]))


# -- cases --------------------------------------------------------------------------------------


def _snn(
    name: str,
    cls: type[nn.Module],
    build: Callable[[], nn.Module],
    names: tuple[str, ...],
    **known: Any,
) -> Case:
    shown = tuple(n for n in names if n not in ("spikes", "membrane"))
    return Case(name, cls, build, passing(*names), state=shown, **known)


_SPK, _SYN = ("spikes", "membrane"), ("current", "membrane")

SNNTORCH = [
    _snn("Leaky", snn.Leaky, lambda: snn.Leaky(beta=0.9), ("membrane",)),
    _snn(
        "Leaky-after",
        snn.Leaky,
        lambda: snn.Leaky(beta=0.9, reset_delay=False, reset_mechanism="zero"),
        ("membrane",),
        membrane="after",
    ),
    _snn(
        "Leaky-none",
        snn.Leaky,
        lambda: snn.Leaky(beta=0.9, reset_mechanism="none"),
        ("membrane",),
        membrane="without",
    ),
    _snn(
        "Leaky-graded",
        snn.Leaky,
        lambda: snn.Leaky(beta=torch.linspace(0.5, 0.9, N), graded_spikes_factor=3.0),
        ("membrane",),
    ),
    _snn("Lapicque", snn.Lapicque, lambda: snn.Lapicque(beta=0.9), ("membrane",), scale=20.0),
    _snn("Synaptic", snn.Synaptic, lambda: snn.Synaptic(alpha=0.8, beta=0.9), _SYN),
    _snn(
        "Alpha",
        snn.Alpha,
        lambda: snn.Alpha(alpha=0.9, beta=0.8),
        ("current_excitatory", "current_inhibitory", "membrane"),
    ),
    _snn(
        "RLeaky-linear",
        snn.RLeaky,
        lambda: snn.RLeaky(beta=0.9, linear_features=N),
        _SPK,
        synapses=("recurrent",),
    ),
    _snn(
        "RLeaky-zero",
        snn.RLeaky,
        lambda: snn.RLeaky(beta=0.9, linear_features=N, reset_mechanism="zero"),
        _SPK,
        synapses=("recurrent",),
    ),
    _snn(
        "RLeaky-conv",
        snn.RLeaky,
        lambda: snn.RLeaky(beta=0.9, conv2d_channels=2, kernel_size=3),
        _SPK,
        units=(2, 5, 4),
        synapses=("recurrent",),
    ),
    _snn(
        "RLeaky-diagonal",
        snn.RLeaky,
        lambda: snn.RLeaky(beta=0.9, all_to_all=False, V=0.5),
        _SPK,
        synapses=("recurrent",),
    ),
    _snn(
        "RSynaptic",
        snn.RSynaptic,
        lambda: snn.RSynaptic(alpha=0.8, beta=0.9, linear_features=N),
        ("spikes", "current", "membrane"),
        synapses=("recurrent",),
    ),
    _snn(
        "SLSTM",
        snn.SLSTM,
        lambda: snn.SLSTM(N, N, threshold=0.1, reset_mechanism="subtract"),
        ("cell", "membrane"),
        synapses=("input", "recurrent"),
    ),
    _snn(
        "SConv2dLSTM",
        snn.SConv2dLSTM,
        lambda: snn.SConv2dLSTM(2, 3, 3, threshold=0.05, max_pool=2),
        ("cell", "membrane"),
        units=(2, 6, 4),
        membrane="without",
        synapses=("input", "recurrent"),
    ),
    Case(
        "DeltaLeaky",
        snn.DeltaLeaky,
        lambda: snn.DeltaLeaky(delta_threshold=0.5, beta=0.9),
        of_delta,
        membrane="without",
        state=("membrane_previous",),
    ),
    Case(
        "StateLeaky",
        snn.StateLeaky,
        lambda: snn.StateLeaky(beta=0.9, channels=N, graded_spikes_factor=2.0),
        of_kernel,
        sequence=True,
        membrane="without",
    ),
    Case(
        "StateLeaky-integrator",
        snn.StateLeaky,
        lambda: snn.StateLeaky(beta=0.9, channels=N, output=False),
        of_kernel,
        sequence=True,
        membrane="without",
        role=Role.INTEGRATOR,
    ),
    Case(
        "LinearLeaky",
        snn.LinearLeaky,
        lambda: snn.LinearLeaky(beta=0.9, in_features=N, out_features=5),
        of_kernel,
        sequence=True,
        membrane="without",
        synapses=("input",),
    ),
    Case(
        "LeakyParallel",
        snn.LeakyParallel,
        lambda: snn.LeakyParallel(N, 5, beta=0.9),
        of_rnn_neuron,
        sequence=True,
        membrane=None,
        synapses=("input",),
    ),
    Case(
        "AssociativeLeaky",
        snn.AssociativeLeaky,
        lambda: snn.AssociativeLeaky(N, 2, 3, 6, use_q_projection=False),
        lambda module, inputs: of_associative(module, inputs[:4]),
        sequence=True,
        membrane=None,
        synapses=("input.value", "input.key", "input.decay"),
        scale=8.0,
    ),
]

_behaviour = norse.tonic_spiking
_coupling = torch.linspace(-2, 2, 25).reshape(5, 5)

_NORSE_STATES: Mapping[str, tuple[str, ...]] = {
    "LIFBox": (),
    "LIBox": (),
    "IAF": (),
    "LSNN": ("current", "threshold"),
    "LIFAdEx": ("current", "adaptation"),
    "Izhikevich": ("recovery",),
    "LIFRefrac": ("current", "refractory"),
    "LIFMCRefrac": ("current", "refractory"),
    "LIFAdExRefrac": ("current", "adaptation", "refractory"),
}


def _norse(cls: type[nn.Module], **arguments: Any) -> Case:
    sequence = not cls.__name__.endswith("Cell")
    family = cls.__name__.removesuffix("Cell").removesuffix("Recurrent")
    sizes = () if family == cls.__name__.removesuffix("Cell") else (N, 5)
    synapses: tuple[str, ...] = ("input", "recurrent") if sizes else ()
    if family == "LILinear":
        sizes, synapses = (N, 5), ("input",)
    if "g_coupling" in arguments:
        synapses = (*synapses, "coupling")
    integrates = family.startswith("LI") and not family.startswith("LIF")
    return Case(
        cls.__name__,
        cls,
        lambda: cls(*sizes, **arguments),
        of_norse_sequence if sequence else of_norse_cell,
        sequence=sequence,
        role=Role.INTEGRATOR if integrates else Role.SPIKING,
        membrane="without" if integrates else "after",
        state=_NORSE_STATES.get(family, ("current",)),
        synapses=synapses,
        scale=200.0 if family == "Izhikevich" else 10.0,
    )


NORSE = [
    *map(
        _norse,
        (
            norse.LIFCell,
            norse.LIFRecurrentCell,
            norse.LIF,
            norse.LIFRecurrent,
            norse.LICell,
            norse.LI,
            norse.LILinearCell,
            norse.LIBoxCell,
            norse.LIFBoxCell,
            norse.IAFCell,
            norse.IAF,
            norse.LSNNCell,
            norse.LSNNRecurrentCell,
            norse.LSNN,
            norse.LSNNRecurrent,
            norse.LIFAdExCell,
            norse.LIFAdExRecurrentCell,
            norse.LIFAdEx,
            norse.LIFAdExRecurrent,
            norse.LIFExCell,
            norse.LIFExRecurrentCell,
            norse.LIFEx,
            norse.LIFExRecurrent,
            norse.LIFRefracCell,
            norse.LIFRefracRecurrentCell,
            norse.LIFRefracRecurrent,
            norse.LIFAdExRefracCell,
            norse.LIFAdExRefracRecurrentCell,
            norse.LIFAdExRefracRecurrent,
        ),
    ),
    *(
        _norse(cls, spiking_method=_behaviour)
        for cls in (
            norse.IzhikevichCell,
            norse.IzhikevichRecurrentCell,
            norse.Izhikevich,
            norse.IzhikevichRecurrent,
        )
    ),
    _norse(norse.LIFMCRecurrentCell, g_coupling=_coupling),
    _norse(norse.LIFMCRefracRecurrentCell, g_coupling=_coupling / 20),
]


def _cell(cls: type[nn.Module]) -> Case:
    return Case(
        cls.__name__,
        cls,
        lambda: cls(N, 5),
        of_torch_cell,
        role=Role.RECURRENT,
        membrane=None,
        state=("cell",) if cls is nn.LSTMCell else (),
        synapses=("input", "recurrent"),
    )


def _whole(name: str, cls: Any, synapses: tuple[str, ...], **arguments: Any) -> Case:
    return Case(
        name,
        cls,
        lambda: cls(N, 5, **arguments),
        of_torch_sequence,
        sequence=True,
        role=Role.RECURRENT,
        membrane=None,
        synapses=synapses,
        time_axis=1 if arguments.get("batch_first") else 0,
    )


_PLAIN = ("input", "recurrent")
_TWO = ("input.0", "recurrent.0", "input.1", "recurrent.1")
_BOTH = ("input.0", "recurrent.0", "input.0.reverse", "recurrent.0.reverse")
_DEEP = (*_BOTH, *(name.replace("0", "1") for name in _BOTH))
_PROJECTED = tuple(
    f"{kind}.{layer}{way}"
    for layer in (0, 1)
    for way in ("", ".reverse")
    for kind in ("input", "recurrent", "projection")
)

TORCH_RECURRENT = [
    *map(_cell, (nn.RNNCell, nn.GRUCell, nn.LSTMCell)),
    _whole("RNN", nn.RNN, _PLAIN),
    _whole("GRU", nn.GRU, _PLAIN),
    _whole("LSTM", nn.LSTM, _PLAIN),
    _whole("RNN-relu-two", nn.RNN, _TWO, num_layers=2, nonlinearity="relu"),
    _whole("GRU-both-ways", nn.GRU, _DEEP, num_layers=2, bidirectional=True, batch_first=True),
    _whole("LSTM-both-ways", nn.LSTM, _DEEP, num_layers=2, bidirectional=True),
    _whole("LSTM-no-bias", nn.LSTM, _TWO, num_layers=2, bias=False, batch_first=True),
    _whole("LSTM-projected", nn.LSTM, _PROJECTED, num_layers=2, bidirectional=True, proj_size=2),
]

_ARGUMENTS: Mapping[type[nn.Module], tuple[float, ...]] = {nn.Threshold: (0.5, 0.0)}


def activations() -> list[Case]:
    from dynvision_snn.adapters.pytorch import ACTIVATIONS

    return [
        Case(
            cls.__name__,
            cls,
            lambda cls=cls: cls(*_ARGUMENTS.get(cls, ())).eval(),
            of_activation,
            role=Role.ACTIVATION,
            membrane=None,
        )
        for cls in ACTIVATIONS
    ]


CASES = [*SNNTORCH, *NORSE, *TORCH_RECURRENT, *activations()]
WITH_SYNAPSES = [case for case in CASES if case.synapses]


def case_name(case: Case) -> str:
    return case.name
