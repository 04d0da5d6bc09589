"""What is known of each neuron class of snnTorch 1.0: one row per class.

Facts are of the published wheel, as it runs, where its documentation says otherwise. One table of
all classes makes the file long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import snntorch as snn
import torch
from snntorch._neurons import leakykernel, leakyunroll
from torch import Tensor, nn

from dynvision_snn.adapters.base import Call, InnerSynapses
from dynvision_snn.adapters.snntorch_delay import delay_steps, due_spikes

Received = tuple[Tensor | None, ...]


@dataclass(frozen=True, slots=True)
class Neuron:
    """What the adapter does with one class. Functions take the module, read-only.

    Attributes:
        state: the variables that the module keeps between calls, by its own names.
        shown: those that a reading shows beside spikes and membrane: our name to the module's.
        reset: ``"switch"`` where the constructor's `reset_delay` decides which membrane is
            recorded, ``"delayed"`` where it is always the one before the reset, ``"never"`` where
            there is no reset, ``"hidden"`` where the module shows no membrane.
        sequence: whether one call runs all timesteps.
        unset: what a state variable holds before the first call: an empty tensor or None.
        leftovers: attributes that a forward leaves behind beside the state; they hold the graph.
        synapses: weights inside the module; `inner` names them.
        received: what they receive in a call that is about to happen.
        neurons: how many neurons of a sample a call updates, by what its weights received, where
            several share an output; None where each has its own.
        decays: by the name of their time constant, the decays per timestep.
        integrator: of which these are the decays.
        caveats: what this module computes unexpectedly.
        refusal: why this module cannot be served; None where it can.
        note: what the documentation says of the class.
    """

    state: tuple[str, ...] = ()
    shown: Mapping[str, str] = field(default_factory=dict)
    reset: Literal["switch", "delayed", "never", "hidden"] = "switch"
    sequence: bool = False
    unset: Literal["empty", "none"] = "empty"
    leftovers: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    synapses: Callable[[Any], tuple[InnerSynapses, ...]] = lambda module: ()
    received: Callable[[Any, Call], Received] = lambda module, call: ()
    neurons: Callable[[Any, Received], int] | None = None
    decays: Mapping[str, Callable[[Any], Tensor]] = field(default_factory=dict)
    integrator: Literal["exact", "euler"] = "exact"
    caveats: Callable[[Any], Iterator[str]] = lambda module: iter(())
    refusal: Callable[[Any], str | None] = lambda module: None
    note: str = ""


# -- decays per timestep of zero input ----------------------------------------------------------


def _clamped(name: str) -> Callable[[Any], Tensor]:
    """A decay that snnTorch clamps to [0, 1] where it uses it."""
    return lambda module: getattr(module, name).clamp(0, 1)


def _of_euler(module: Any) -> Tensor:
    return 1 - module.time_step / (module.R * module.C)


def _of_kernel(module: Any) -> Tensor:
    return torch.exp(-1 / module.tau.double())


def _of_rnn(module: Any) -> Tensor:
    # The RNN rectifies its state, so that a negative weight forgets at once.
    return module.rnn.weight_hh_l0.diagonal().clamp(min=0)


# -- synapses and what they receive -----------------------------------------------------------


def _held(module: Any, call: Call, position: int, name: str, shape: torch.Size) -> Tensor | None:
    """The state that the call starts from; of another shape, the module starts from zeros."""
    passed = call.argument(position, name)
    held: Tensor = getattr(module, name) if passed is None else passed
    return held if held.shape == shape else None


def _recurrent(module: Any) -> tuple[InnerSynapses, ...]:
    if hasattr(module.recurrent, "V"):
        # Fixed one-to-one weights are a plain attribute, which stays behind when the module moves.
        weights = module.recurrent.V.to(module.mem.device)
        return (InnerSynapses("recurrent", weights, "diagonal"),)
    return (InnerSynapses("recurrent", module.recurrent, "module"),)


def _previous_spikes(module: Any, call: Call) -> Received:
    if delay_steps(module) > 1:
        return (due_spikes(module, call.inputs),)
    return (_held(module, call, 1, "spk", call.inputs.shape),)


def _lstm(module: Any) -> tuple[InnerSynapses, ...]:
    return (
        InnerSynapses("input", module.lstm_cell.weight_ih),
        InnerSynapses("recurrent", module.lstm_cell.weight_hh),
    )


def _lstm_received(module: Any, call: Call) -> Received:
    return (call.inputs, _held(module, call, 2, "mem", call.inputs.shape))


def _conv_lstm(module: Any) -> tuple[InnerSynapses, ...]:
    """The convolution over input and hidden channels as two, so that spikes stay spikes."""
    conv, n_inputs = module.conv, module.in_channels
    return (
        InnerSynapses("input", _channels(conv, slice(0, n_inputs)), "module"),
        InnerSynapses("recurrent", _channels(conv, slice(n_inputs, None)), "module"),
    )


def _channels(conv: nn.Conv2d, channels: slice) -> nn.Conv2d:
    """A convolution of some input channels, whose weight is a view of the whole one's."""
    weight = conv.weight.detach()[:, channels]
    part = nn.Conv2d(
        weight.shape[1],
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        bias=False,
        device="meta",
    )
    part.weight = nn.Parameter(weight, requires_grad=False)
    return part


def _conv_lstm_received(module: Any, call: Call) -> Received:
    batch, _, *size = call.inputs.shape
    hidden = torch.Size((batch, module.out_channels, *size))
    held = _held(module, call, 2, "mem", hidden)
    # Not silence: what a pooled output tells of the size of the membrane is wrong.
    return (call.inputs, call.inputs.new_zeros(()).expand(hidden) if held is None else held)


def _cells(module: Any, received: Received) -> int:
    """Every cell of the membrane, which is as large as the input; pooling comes after it."""
    inputs = received[0]
    assert inputs is not None
    cells: int = module.out_channels * inputs.shape[3:].numel()
    return cells


def _inputs(module: Any, call: Call) -> Received:
    return (call.inputs,)


def _projections(module: Any) -> tuple[InnerSynapses, ...]:
    return (
        InnerSynapses("input.value", module.to_v, "module", module.d_value),
        InnerSynapses("input.key", module.to_k, "module", module.d_key),
        InnerSynapses("input.decay", module.to_alpha, "module", module.d_key),
    )


# -- caveats and refusals ---------------------------------------------------------------------


def _caveats_of_lapicque(module: Any) -> Iterator[str]:
    yield (
        "Lapicque steps by Euler: per timestep it decays by 1 - time_step / (R C) = "
        f"{_number(_of_euler(module))}, not by its beta of "
        f"{_number(module.beta)}"
    )
    if isinstance(module.beta, nn.Parameter):
        yield (
            "Lapicque(learn_beta=True) cannot be trained: beta does not enter its forward, and a "
            "second backward fails inside snnTorch"
        )


def _caveats_of_never_firing(module: Any) -> Iterator[str]:
    if bool((module.threshold >= 1).all()):
        yield (
            f"{type(module).__name__} never spikes at its threshold of "
            f"{_number(module.threshold)}: its membrane is an LSTM's hidden state, which stays "
            "between -1 and 1. Pass a lower threshold"
        )


def _caveats_of_kernel(module: Any) -> Iterator[str]:
    name = type(module).__name__
    yield (
        f"{name} decays by exp(-1 / tau) with tau = 1 / (1 - beta): by "
        f"{_number(_of_kernel(module))} per timestep, not by its beta of "
        f"{_number(module.beta)}"
    )
    if module.output and bool((module.graded_spikes_factor != 1).any()):
        yield f"{name} multiplies its spikes by graded_spikes_factor twice"


def _caveats_of_rnn(module: Any) -> Iterator[str]:
    if module.beta is not None and module.beta.numel() > 1:
        yield (
            "LeakyParallel ignores a beta of more than one value: its decays are those with which "
            "its RNN was initialised"
        )


def _caveats_of_associative(module: Any) -> Iterator[str]:
    yield (
        "AssociativeLeaky divides by products of its decays, which underflow: its state drifts "
        "from its own recursion within some tens of timesteps, and its spikes with it"
    )
    yield (
        "AssociativeLeaky's outer products are no synapses: a budget counts its projections and "
        "its spikes only"
    )


def _no_immediate_reset(module: Any) -> str | None:
    if module.reset_delay:
        return None
    return (
        "with reset_delay=False it reads states that it was not passed, and fails or does not "
        "reset. Leave reset_delay=True"
    )


def _equal_sizes(module: Any) -> str | None:
    if module.input_size == module.hidden_size:
        return None
    return (
        f"with input_size {module.input_size} and hidden_size {module.hidden_size} it restarts "
        "from zeros at every timestep, even if a state is passed: it compares its state's shape "
        f"with its input's. Put a Linear({module.input_size}, {module.hidden_size}) before it and "
        "make both sizes equal"
    )


def _leak_only(module: Any) -> str | None:
    weight = module.rnn.weight_hh_l0.detach()
    if torch.equal(weight, torch.diag(weight.diagonal())):
        return None
    return (
        "with weight_hh_enable=True it mixes the membranes of its neurons inside one call, where "
        "nothing can be observed. Leave weight_hh_enable=False, or use RLeaky"
    )


def _spikes_shown(module: Any) -> str | None:
    if not module.use_q_projection:
        return None
    return (
        "with use_q_projection=True its output is no spikes, and its spikes cannot be observed. "
        "Pass use_q_projection=False and apply a projection of your own"
    )


def _number(values: Tensor) -> str:
    """One number, or the range of several."""
    low, high = float(values.min()), float(values.max())
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


# -- the table --------------------------------------------------------------------------------

_MEM = ("mem",)
_SYN_MEM = ("syn", "mem")

TABLE: Mapping[type[nn.Module], Neuron] = {
    snn.Leaky: Neuron(_MEM, decays={"membrane": _clamped("beta")}),
    snn.Lapicque: Neuron(
        _MEM,
        reset="delayed",
        decays={"membrane": _of_euler},
        integrator="euler",
        caveats=_caveats_of_lapicque,
        note="Steps by Euler, unlike Leaky: warned about. `learn_beta=True` cannot be trained.",
    ),
    snn.Synaptic: Neuron(
        _SYN_MEM,
        {"current": "syn"},
        decays={"membrane": _clamped("beta"), "synapse": _clamped("alpha")},
    ),
    snn.Alpha: Neuron(
        ("syn_exc", "syn_inh", "mem"),
        {"current_excitatory": "syn_exc", "current_inhibitory": "syn_inh"},
        reset="delayed",
        decays={"synapse_excitatory": _clamped("alpha"), "synapse_inhibitory": _clamped("beta")},
        note="Its membrane is the scaled sum of two currents and has no time constant of its own.",
    ),
    snn.RLeaky: Neuron(
        ("spk", "mem"),
        inner=("recurrent",),
        synapses=_recurrent,
        received=_previous_spikes,
        decays={"membrane": _clamped("beta")},
    ),
    snn.RSynaptic: Neuron(
        ("spk", "syn", "mem"),
        {"current": "syn"},
        reset="delayed",
        inner=("recurrent",),
        synapses=_recurrent,
        received=_previous_spikes,
        decays={"membrane": _clamped("beta"), "synapse": _clamped("alpha")},
        refusal=_no_immediate_reset,
        note="`reset_delay=False` is refused: it fails in the wheel.",
    ),
    snn.SLSTM: Neuron(
        _SYN_MEM,
        {"cell": "syn"},
        reset="delayed",
        leftovers=("spk",),
        inner=("input", "recurrent"),
        synapses=_lstm,
        received=_lstm_received,
        caveats=_caveats_of_never_firing,
        refusal=_equal_sizes,
        note="Recurs on its analog membrane. Unequal sizes are refused: its state restarts at "
        "every timestep. A threshold of 1 or more never fires: warned about.",
    ),
    snn.SConv2dLSTM: Neuron(
        _SYN_MEM,
        {"cell": "syn"},
        reset="delayed",
        leftovers=("spk",),
        inner=("input", "recurrent"),
        synapses=_conv_lstm,
        received=_conv_lstm_received,
        neurons=_cells,
        caveats=_caveats_of_never_firing,
        note="Recurs on its analog membrane. With pooling, its spikes are fewer than its neurons: "
        "they are of the pooled membrane. A threshold of 1 or more never fires: warned about.",
    ),
    snn.DeltaLeaky: Neuron(
        ("mem", "mem_prev"),
        {"membrane_previous": "mem_prev"},
        reset="never",
        unset="none",
        decays={"membrane": lambda module: module.beta},
        note="Spikes where the membrane changes by more than `delta_threshold`; ignores reset, "
        "inhibition, quantisation and graded spikes. After a reset its state is None, as in a new "
        "one, on which `snntorch.utils.reset` of any net raises.",
    ),
    snn.StateLeaky: Neuron(
        sequence=True,
        reset="never",
        leftovers=("spk",),
        decays={"membrane": _of_kernel},
        caveats=_caveats_of_kernel,
        note="Decays by exp(-1 / tau), not by beta: warned about. `output=False` makes it an "
        "integrator. Keeps no state: a run cannot go on from another's.",
    ),
    snn.LinearLeaky: Neuron(
        sequence=True,
        reset="never",
        leftovers=("spk", "mem"),
        inner=("input",),
        synapses=lambda module: (InnerSynapses("input", module.linear, "module"),),
        received=_inputs,
        decays={"membrane": _of_kernel},
        caveats=_caveats_of_kernel,
        note="As StateLeaky.",
    ),
    snn.LeakyParallel: Neuron(
        sequence=True,
        reset="hidden",
        inner=("input",),
        synapses=lambda module: (InnerSynapses("input", module.rnn.weight_ih_l0),),
        received=_inputs,
        decays={"membrane": _of_rnn},
        caveats=_caveats_of_rnn,
        refusal=_leak_only,
        note="Its membrane, rectified, is inside an RNN and not shown. `weight_hh_enable=True` is "
        "refused: it mixes membranes. A beta of several values is ignored: warned about.",
    ),
    snn.AssociativeLeaky: Neuron(
        sequence=True,
        reset="hidden",
        inner=("input.value", "input.key", "input.decay"),
        synapses=_projections,
        received=lambda module, call: (call.inputs,) * 3,
        caveats=_caveats_of_associative,
        refusal=_spikes_shown,
        note="Drifts from its own recursion: warned about. `use_q_projection=True` is refused: "
        "its output is no spikes.",
    ),
}

REFUSED: Mapping[type[nn.Module], str] = {
    leakykernel.LeakyKernel: "it is an unfinished class that snnTorch does not export",
    leakyunroll.LeakyParallel: "it is an unfinished class that snnTorch does not export; use "
    "snntorch.LeakyParallel",
}

BASES: tuple[type[nn.Module], ...] = (snn.SpikingNeuron, snn.LIF)
