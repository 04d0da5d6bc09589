"""What is known of each neuron class of Norse 1.1: one row per class.

Facts are of the published wheel, as it runs, where its documentation says otherwise. Its time
constants are given as rates; with its ``dt`` in seconds they are per second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import mul
from typing import Any

import norse.torch as norse
import torch
from norse.torch.functional.lif import lif_step
from norse.torch.module import snn
from torch import Tensor, nn

from dynvision_snn.adapters.base import Call, InnerSynapses, Role
from dynvision_snn.timing import format_ms

Received = tuple[Tensor | None, ...]

STATE_NAMES = {
    "i": "current",
    "a": "adaptation",
    "b": "threshold",
    "u": "recovery",
    "rho": "refractory",
}
"""Our names of Norse's state variables, beside the membrane ``v`` and the spikes ``z``."""


@dataclass(frozen=True, slots=True)
class Neuron:
    """What the adapter does with one class. Functions take the module, read-only.

    Attributes:
        state: state variables beside ``v`` and ``z``, by Norse's names.
        sequence: whether one call runs all timesteps.
        role: what the output is.
        parameters: where in ``module.p`` the membrane's parameters are; ``""`` for `p` itself.
        rates: the inverse of each time constant, from those parameters.
        inner, synapses, received: weights inside the module by name, as operators, and what they
            receive in a call that is about to happen.
        caveats: what this module computes unexpectedly.
        note: what the documentation says of the class.
    """

    state: tuple[str, ...] = ("i",)
    sequence: bool = False
    role: Role = Role.SPIKING
    parameters: str = ""
    rates: Mapping[str, Callable[[Any], Tensor]] = field(default_factory=dict)
    inner: tuple[str, ...] = ()
    synapses: Callable[[Any], tuple[InnerSynapses, ...]] = lambda module: ()
    received: Callable[[Any, Call], Received] = lambda module, call: ()
    caveats: Callable[[Any], Iterator[str]] = lambda module: iter(())
    note: str = ""


def flat(state: Any) -> dict[str, Tensor]:
    """The tensors of a state by Norse's names; refractory neurons nest another's state."""
    found: dict[str, Tensor] = {}
    for name, value in state._asdict().items():
        found.update(flat(value) if isinstance(value, tuple) else {name: value})
    return found


def parameters_of(module: Any, neuron: Neuron) -> Any:
    """The parameters of the membrane."""
    return getattr(module.p, neuron.parameters) if neuron.parameters else module.p


# -- rates, per second --------------------------------------------------------------------------


def _rate(*names: str) -> Callable[[Any], Tensor]:
    """The product of some parameters."""
    return lambda p: reduce(mul, (torch.as_tensor(getattr(p, name)) for name in names))


_MEMBRANE = {"membrane": _rate("tau_mem_inv")}
_MEMBRANE_AND_SYNAPSE = {**_MEMBRANE, "synapse": _rate("tau_syn_inv")}


# -- synapses and what they receive -----------------------------------------------------------


def _weights(module: Any) -> tuple[InnerSynapses, ...]:
    return (
        InnerSynapses("input", module.input_weights),
        InnerSynapses("recurrent", module.recurrent_weights),
    )


def _input_and_spikes(module: Any, call: Call) -> Received:
    state = call.argument(1, "state")
    if state is None:
        return (call.inputs, None)
    spikes = flat(state)["z"]
    # Of a cell with a longer delay, the spikes of all timesteps still on their way, oldest first.
    delayed = spikes.ndim > call.inputs.ndim
    return (call.inputs, spikes[0] if delayed else spikes)


def _coupled(module: Any) -> tuple[InnerSynapses, ...]:
    return (*_weights(module), InnerSynapses("coupling", module.g_coupling))


@torch.no_grad()
def _membrane_after_reset(module: Any, call: Call) -> Received:
    """LIFMC couples the membranes of the same timestep, which no call shows: its LIF step again."""
    state = call.argument(1, "state")
    state = module.initial_state(call.inputs) if state is None else state
    _, after = lif_step(
        call.inputs, state, module.input_weights, module.recurrent_weights, module.p, module.dt
    )
    return (*_input_and_spikes(module, call), after.v)


def _membrane_before(module: Any, call: Call) -> Received:
    """LIFMCRefrac couples the membranes of the timestep before."""
    state = call.argument(1, "state")
    state = module.initial_state(call.inputs) if state is None else state
    return (*_input_and_spikes(module, call), state.lif.v)


# -- caveats ----------------------------------------------------------------------------------


def _caveats_of_lsnn(module: Any) -> Iterator[str]:
    default = norse.LSNNParameters().tau_adapt_inv
    if torch.equal(torch.as_tensor(module.p.tau_adapt_inv), default):
        yield (
            f"{type(module).__name__}'s default tau_adapt_inv of 1/800 is meant in 1/ms, but its "
            "dt is in seconds: the threshold adapts with a time constant of 800 s. Pass "
            "LSNNParameters(tau_adapt_inv=torch.tensor(1 / 0.8)) for 800 ms"
        )


def _caveats_of_adex(module: Any, parameters: Any = None) -> Iterator[str]:
    parameters = module.p if parameters is None else parameters
    default = norse.LIFAdExParameters().tau_ada_inv
    if torch.equal(torch.as_tensor(parameters.tau_ada_inv), default):
        yield (
            f"{type(module).__name__}'s default tau_ada_inv of 2 is documented in 1/ms, but its dt "
            "is in seconds: the adaptation's time constant is 500 ms, not 0.5 ms"
        )


def _caveats_of_izhikevich(module: Any) -> Iterator[str]:
    tau_inv = float(torch.as_tensor(module.p.tau_inv))
    if tau_inv != 1000:
        yield (
            f"{type(module).__name__} has tau_inv={tau_inv:g} per second: a millisecond of the "
            f"published model lasts {format_ms(1000 / tau_inv)} here. Set tau_inv=1000 for its time"
        )


def _caveats_of_refractory(module: Any) -> Iterator[str]:
    steps = float(torch.as_tensor(module.p.rho_reset).max())
    yield (
        f"{type(module).__name__} counts its refractory period in timesteps: rho_reset={steps:g} "
        "lasts as many, however long a timestep is"
    )


def _caveats_of_adex_refractory(module: Any) -> Iterator[str]:
    yield from _caveats_of_adex(module, module.p.lif_adex)
    yield from _caveats_of_refractory(module)


def _caveats_of_coupled_refractory(module: Any) -> Iterator[str]:
    yield from _caveats_of_refractory(module)
    yield (
        f"{type(module).__name__} does not multiply its coupling by dt, as LIFMCRecurrentCell "
        "does, and can spike while refractory"
    )


# -- the table --------------------------------------------------------------------------------

_REFRACTORY = "The refractory period is a count of timesteps: warned about."
_LSNN = "Its input reaches the membrane one timestep later than a LIF's."

_lif = Neuron(rates=_MEMBRANE_AND_SYNAPSE)
_li = replace(_lif, role=Role.INTEGRATOR)
_box = Neuron(state=(), rates=_MEMBRANE)
_iaf = Neuron(state=(), rates={"membrane": lambda p: torch.zeros(())}, note="Does not leak.")
_lsnn = Neuron(
    ("i", "b"),
    rates={**_MEMBRANE_AND_SYNAPSE, "adaptation": _rate("tau_adapt_inv")},
    caveats=_caveats_of_lsnn,
    note=f"{_LSNN} The default adaptation takes 800 s: warned about.",
)
_adex = Neuron(
    ("i", "a"),
    rates={**_MEMBRANE_AND_SYNAPSE, "adaptation": _rate("tau_ada_inv")},
    caveats=_caveats_of_adex,
    note="The default adaptation takes 500 ms, where 1/ms is documented: warned about.",
)
_izhikevich = Neuron(
    ("u",),
    rates={"recovery": _rate("tau_inv", "a")},
    caveats=_caveats_of_izhikevich,
    note="Membrane in mV, without a time constant of its own. The presets run slower than the "
    "published model: warned about.",
)
_refractory = replace(
    _lif,
    state=("i", "rho"),
    parameters="lif",
    caveats=_caveats_of_refractory,
    note=_REFRACTORY,
)
_adex_refractory = replace(
    _adex,
    state=("i", "a", "rho"),
    parameters="lif_adex",
    caveats=_caveats_of_adex_refractory,
    note=f"{_adex.note} {_REFRACTORY}",
)


def _over_time(neuron: Neuron) -> Neuron:
    return replace(neuron, sequence=True)


def _recurrent(neuron: Neuron) -> Neuron:
    return replace(
        neuron, inner=("input", "recurrent"), synapses=_weights, received=_input_and_spikes
    )


def _multi_compartment(neuron: Neuron, received: Callable[[Any, Call], Received]) -> Neuron:
    return replace(
        neuron, inner=("input", "recurrent", "coupling"), synapses=_coupled, received=received
    )


TABLE: Mapping[type[nn.Module], Neuron] = {
    norse.LIFCell: _lif,
    norse.LIFRecurrentCell: _recurrent(_lif),
    norse.LIF: _over_time(_lif),
    norse.LIFRecurrent: _over_time(_recurrent(_lif)),
    norse.LICell: _li,
    norse.LI: _over_time(_li),
    norse.LILinearCell: replace(
        _li,
        inner=("input",),
        synapses=lambda module: (InnerSynapses("input", module.input_weights),),
        received=lambda module, call: (call.inputs,),
    ),
    norse.LIBoxCell: replace(_box, role=Role.INTEGRATOR),
    norse.LIFBoxCell: _box,
    norse.IAFCell: _iaf,
    norse.IAF: _over_time(_iaf),
    norse.LSNNCell: _lsnn,
    norse.LSNNRecurrentCell: _recurrent(_lsnn),
    norse.LSNN: _over_time(_lsnn),
    norse.LSNNRecurrent: _over_time(_recurrent(_lsnn)),
    norse.LIFAdExCell: _adex,
    norse.LIFAdExRecurrentCell: _recurrent(_adex),
    norse.LIFAdEx: _over_time(_adex),
    norse.LIFAdExRecurrent: _over_time(_recurrent(_adex)),
    norse.LIFExCell: _lif,
    norse.LIFExRecurrentCell: _recurrent(_lif),
    norse.LIFEx: _over_time(_lif),
    norse.LIFExRecurrent: _over_time(_recurrent(_lif)),
    norse.IzhikevichCell: _izhikevich,
    norse.IzhikevichRecurrentCell: _recurrent(_izhikevich),
    norse.Izhikevich: _over_time(_izhikevich),
    norse.IzhikevichRecurrent: _over_time(_recurrent(_izhikevich)),
    norse.LIFRefracCell: _refractory,
    norse.LIFRefracRecurrentCell: _recurrent(_refractory),
    norse.LIFRefracRecurrent: _over_time(_recurrent(_refractory)),
    norse.LIFAdExRefracCell: _adex_refractory,
    norse.LIFAdExRefracRecurrentCell: _recurrent(_adex_refractory),
    norse.LIFAdExRefracRecurrent: _over_time(_recurrent(_adex_refractory)),
    norse.LIFMCRecurrentCell: replace(
        _multi_compartment(_lif, _membrane_after_reset),
        note="Membrane after reset and coupling. Counting its coupling runs its LIF step twice.",
    ),
    norse.LIFMCRefracRecurrentCell: replace(
        _multi_compartment(_refractory, _membrane_before),
        caveats=_caveats_of_coupled_refractory,
        note=f"{_REFRACTORY} Its coupling does not follow dt, and it can spike while refractory: "
        "warned about.",
    ),
}

REFUSED: Mapping[type[nn.Module], str] = {
    norse.CobaLIFCell: "it ignores its input: its conductances are overwritten by those of its "
    "recurrent spikes. Use LIFRecurrentCell",
    norse.LIFCorrelation: "its weights are arguments of every call, so that no synapses are known "
    "of it. Use LIFRecurrentCell",
}

BASES: tuple[type[nn.Module], ...] = (
    snn.SNNCell,
    snn.SNNRecurrentCell,
    snn.SNN,
    snn.SNNRecurrent,
)
