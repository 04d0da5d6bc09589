"""snnTorch's neurons as scan specs, in the order of operations of snnTorch 1.0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from dynvision_snn.adapters.base import Call
from dynvision_snn.adapters.scan_spec import (
    After,
    Before,
    Recurrence,
    ScanSpec,
    Synapse,
    Update,
)
from dynvision_snn.adapters.surrogates import snntorch_surrogate

# Each class's state buffers in the order of its arguments, and our names of them.
_ORDER: Mapping[type[nn.Module], Mapping[str, str]] = {
    snn.Leaky: {"mem": "membrane"},
    snn.Lapicque: {"mem": "membrane"},
    snn.Synaptic: {"syn": "current", "mem": "membrane"},
    snn.RLeaky: {"spk": "spikes", "mem": "membrane"},
}

_MECHANISMS: Mapping[str, int] = {"_base_sub": 0, "_base_zero": 1, "_base_int": 2}


def why_not(module: Any) -> str | None:
    """Why `module` cannot be scanned; None where it can.

    May wait for the module's device, unlike `spec`.
    """
    if type(module) not in _ORDER:  # a subclass may compute anything
        return f"no scan is written for {type(module).__name__}"
    if snntorch_surrogate(module.spike_grad) is None:
        return "its surrogate gradient is none of those shipped by snnTorch that a scan knows"
    if module.inhibition:
        return "its inhibition joins its units"
    if module.state_quant:
        return "its state is quantised"
    mechanism = _MECHANISMS.get(module.state_function.__name__)
    if mechanism is None or mechanism != int(module.reset_mechanism_val):
        return "its reset mechanism was changed after it was built"
    if isinstance(module, snn.Lapicque) and isinstance(module.beta, nn.Parameter):
        return "snnTorch's Lapicque does not learn its beta"
    if isinstance(module, snn.RLeaky) and _recurrence(module) is None:
        return "its recurrent connection is neither a square Linear nor one to one"
    if any(value.dtype == torch.float64 and value.ndim > 0 for value in _own(module)):
        return "its parameters are float64, and would make its membrane so"
    return None


def spec(module: Any) -> ScanSpec:
    """One timestep of `module`, with its present parameters; only where there is no `why_not`."""
    mechanism = _MECHANISMS[module.state_function.__name__]
    delayed = isinstance(module, snn.Lapicque) or bool(module.reset_delay)
    # Only Leaky clears its membrane before the update; the others lose the timestep's input too.
    zero = Before.ZERO if isinstance(module, snn.Leaky) else Before.ZERO_UPDATE
    lapicque = isinstance(module, snn.Lapicque)
    synaptic = isinstance(module, snn.Synaptic)
    factor = module.graded_spikes_factor
    return ScanSpec(
        update=Update.DECAY,
        rate=_lapicque_decay(module) if lapicque else module.beta.clamp(0, 1),
        threshold=module.threshold,
        surrogate=snntorch_surrogate(module.spike_grad),
        before=(Before.SUBTRACT, zero, Before.NONE)[mechanism],
        after=After.NONE
        if delayed
        else (After.OWED_SUBTRACT, After.OWED_ZERO, After.NONE)[mechanism],
        synapse=Synapse.DECAY if synaptic else Synapse.NONE,
        synapse_rate=module.alpha.clamp(0, 1) if synaptic else None,
        spike_value=factor,
        gains=_lapicque_gains(module) if lapicque else (),
        recurrence=_recurrence(module) if isinstance(module, snn.RLeaky) else None,
    )


def start(module: Any, call: Call) -> dict[str, Any]:
    """The state passed to a call, or else held by the module, where it fits the input.

    snnTorch starts from zeros where it does not, as where a membrane is that of a reset neuron.
    """
    order = _ORDER[type(module)]
    given = {ours: call.argument(k + 1, theirs) for k, (theirs, ours) in enumerate(order.items())}
    passed = {ours: value for ours, value in given.items() if value is not None}
    held = {ours: getattr(module, theirs) for theirs, ours in order.items() if ours not in passed}
    shape = call.inputs.shape
    return {ours: value for ours, value in (passed | held).items() if _fits(value, shape)}


def _fits(value: Any, shape: torch.Size) -> bool:
    # Names stand for the states where a plan asks which is which.
    return not isinstance(value, Tensor) or value.shape == shape


def returned(module: Any, values: Mapping[str, Any]) -> Any:
    """Spikes alone, or with the state after them."""
    if module.init_hidden and not module.output:
        return values["output"]
    states = [ours for ours in _ORDER[type(module)].values() if ours != "spikes"]
    return (values["output"], *(values[ours] for ours in states))


def finish(module: Any, state: Mapping[str, Tensor]) -> None:
    """Leaves the state in the buffers."""
    for theirs, ours in _ORDER[type(module)].items():
        setattr(module, theirs, state[ours])


def _lapicque_decay(module: Any) -> Tensor:
    return 1 - (module.time_step / (module.R * module.C))


def _lapicque_gains(module: Any) -> tuple[Tensor, ...]:
    return (module.R, 1 / (module.R * module.C), module.time_step)


def _recurrence(module: Any) -> Recurrence | None:
    connection = module.recurrent
    if isinstance(connection, nn.Linear):
        if connection.weight.shape[0] != connection.weight.shape[1]:
            return None
        return Recurrence(connection.weight, connection.bias)
    if isinstance(connection, nn.Conv2d):
        return None
    return Recurrence(connection.V, diagonal=True)


def _own(module: Any) -> list[Tensor]:
    names = {
        name
        for name in ("beta", "alpha", "threshold", "graded_spikes_factor", "R", "C", "V")
        if hasattr(module, name)
    }
    return [value for name, value in module.named_parameters() if name in names] + [
        value for name, value in module.named_buffers() if name in names
    ]
