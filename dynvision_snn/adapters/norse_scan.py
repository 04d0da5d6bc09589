"""Norse's neurons as scan specs, in the order of operations of Norse 1.1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import norse.torch as norse
import torch
from norse.torch.functional.lif_box import LIFBoxFeedForwardState
from norse.torch.functional.reset import reset_subtract, reset_value
from norse.torch.module.leaky_integrator_box import LIBoxCell
from torch import Tensor, nn

from dynvision_snn.adapters.base import Call
from dynvision_snn.adapters.norse_delay import delay_steps
from dynvision_snn.adapters.scan_spec import (
    After,
    Recurrence,
    ScanSpec,
    Synapse,
    Update,
)
from dynvision_snn.adapters.surrogates import norse_surrogate


def why_not(module: Any) -> str | None:
    """Why `module` cannot be scanned; None where it can."""
    if type(module) not in _SPECS:
        return f"no scan is written for {type(module).__name__}"
    if isinstance(module, _RECURRENT) and delay_steps(module) > 1:
        return "its recurrent spikes arrive more than one timestep later"
    p = module.p
    fields = p._asdict()
    # IAF makes its reset value require a gradient at its first call, by itself.
    own = {name for name in fields if not (isinstance(module, _IAF) and name == "v_reset")}
    if any(isinstance(fields[name], Tensor) and fields[name].requires_grad for name in own):
        return "its parameters are to be learned"
    if "method" in fields and norse_surrogate(p.method, p.alpha) is None:
        return f"no scan knows the method {p.method!r}"
    if "reset_method" in fields and p.reset_method not in (reset_value, reset_subtract):
        return "its reset method is none of Norse's"
    if any(isinstance(v, Tensor) and v.ndim > 0 and v.dtype != torch.float32 for v in p):
        return "its parameters are not float32"
    return None


def spec(module: Any) -> ScanSpec:
    """One timestep of `module`, with its present parameters; only where there is no `why_not`."""
    return _SPECS[type(module)](module)


def start(module: Any, call: Call) -> dict[str, Any]:
    """The state passed to a call."""
    state = call.argument(1, "state")
    return {} if state is None else {NAMES[k]: v for k, v in state._asdict().items()}


def returned(module: Any, values: Mapping[str, Any]) -> Any:
    """The output, and the state as Norse's namedtuple."""
    state = _STATES[type(module)]
    return values["output"], state(*(values[NAMES[name]] for name in state._fields))


def _lif(module: Any) -> ScanSpec:
    p, dt = module.p, module.dt
    return ScanSpec(
        update=Update.EULER,
        rate=_tensor(dt * p.tau_mem_inv),
        leak=_tensor(p.v_leak),
        synapse=Synapse.EULER,
        synapse_rate=_tensor(-dt * p.tau_syn_inv),
        threshold=_tensor(p.v_th),
        surrogate=norse_surrogate(p.method, p.alpha),
        after=After.VALUE,
        reset_value=_tensor(p.v_reset),
        initial_membrane=_tensor(p.v_leak),
    )


def _lif_recurrent(module: Any) -> ScanSpec:
    # lif_step detaches the reset, lif_feed_forward_step does not.
    return replace(
        _lif(module),
        reset_detached=True,
        input_weight=module.input_weights,
        recurrence=Recurrence(module.recurrent_weights),
    )


def _lif_box(module: Any) -> ScanSpec:
    p, dt = module.p, module.dt
    by_value = p.reset_method is reset_value
    return ScanSpec(
        update=Update.EULER_INPUT_FIRST,
        rate=_tensor(dt * p.tau_mem_inv),
        leak=_tensor(p.v_leak),
        threshold=_tensor(p.v_th),
        surrogate=norse_surrogate(p.method, p.alpha),
        after=After.VALUE if by_value else After.SUBTRACT,
        reset_value=_tensor(p.v_reset) if by_value else None,
        initial_membrane=_tensor(p.v_leak),
    )


def _li(module: Any) -> ScanSpec:
    p, dt = module.p, module.dt
    return ScanSpec(
        update=Update.EULER,
        rate=_tensor(dt * p.tau_mem_inv),
        leak=_tensor(p.v_leak),
        synapse=Synapse.EULER,
        synapse_rate=_tensor(-dt * p.tau_syn_inv),
        initial_membrane=_tensor(p.v_leak),
    )


def _li_linear(module: Any) -> ScanSpec:
    return replace(_li(module), input_weight=module.input_weights)


def _li_box(module: Any) -> ScanSpec:
    p, dt = module.p, module.dt
    return ScanSpec(
        update=Update.EULER,
        rate=_tensor(dt * p.tau_mem_inv),
        leak=_tensor(p.v_leak),
        initial_membrane=_tensor(p.v_leak),
    )


def _iaf(module: Any) -> ScanSpec:
    p = module.p
    return ScanSpec(
        update=Update.SUM,
        threshold=_tensor(p.v_th),
        surrogate=norse_surrogate(p.method, p.alpha),
        after=After.VALUE,
        reset_value=_tensor(p.v_reset),
        initial_membrane=_tensor(p.v_reset),
    )


def _tensor(value: Tensor | float) -> Tensor:
    return torch.as_tensor(value).detach()


_RECURRENT = (norse.LIFRecurrentCell, norse.LIFRecurrent)
NAMES: Mapping[str, str] = {"z": "spikes", "v": "membrane", "i": "current"}
"""Norse's state variables, and our names of them."""

_STATES: Mapping[type[nn.Module], Any] = {
    norse.LIFCell: norse.LIFFeedForwardState,
    norse.LIF: norse.LIFFeedForwardState,
    norse.LIFRecurrentCell: norse.LIFState,
    norse.LIFRecurrent: norse.LIFState,
    norse.LIFBoxCell: LIFBoxFeedForwardState,
    norse.LICell: norse.LIState,
    norse.LI: norse.LIState,
    norse.LILinearCell: norse.LIState,
    LIBoxCell: norse.LIBoxState,
    norse.IAFCell: norse.IAFFeedForwardState,
    norse.IAF: norse.IAFFeedForwardState,
}

_IAF = (norse.IAFCell, norse.IAF)

_SPECS: Mapping[type[nn.Module], Callable[[Any], ScanSpec]] = {
    norse.LIFCell: _lif,
    norse.LIF: _lif,
    norse.LIFRecurrentCell: _lif_recurrent,
    norse.LIFRecurrent: _lif_recurrent,
    norse.LIFBoxCell: _lif_box,
    norse.LICell: _li,
    norse.LI: _li,
    norse.LILinearCell: _li_linear,
    LIBoxCell: _li_box,
    norse.IAFCell: _iaf,
    norse.IAF: _iaf,
}
