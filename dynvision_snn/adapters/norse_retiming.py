"""How each neuron of Norse is given another timestep; docs/time.md derives the rules.

Norse steps by Euler with rates per second, so that its ``dt`` alone sets the decays. What differs
is how the input enters: unscaled into a current or a membrane that sums it, or times ``dt``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import norse.torch as norse
import torch
from torch import Tensor, nn

from dynvision_snn.adapters.base import Retimed, kept_steps
from dynvision_snn.adapters.norse_delay import can_delay, delay_steps, set_delay_steps
from dynvision_snn.timing import format_ms, ms_to_seconds

_ONE = torch.ones((), dtype=torch.float64)

# Wider than the rounding of a float32 count of timesteps.
_ROUNDING = 1e-4

Factors = tuple[Tensor, Tensor]


def _summed(ratio: float) -> Factors:
    """Factors of lasting and of spiking input that is added to a state, however long dt is."""
    return _ONE * ratio, _ONE


def _times_dt(ratio: float) -> Factors:
    """Factors of lasting and of spiking input that is multiplied by dt."""
    return _ONE, _ONE / ratio


RULES: Mapping[type[nn.Module], Callable[[float], Factors]] = {
    norse.LIFCell: _summed,
    norse.LIF: _summed,
    norse.LIFRecurrentCell: _summed,
    norse.LIFRecurrent: _summed,
    norse.LICell: _summed,
    norse.LI: _summed,
    norse.LILinearCell: _summed,
    norse.LIFBoxCell: _times_dt,
    norse.LIBoxCell: _times_dt,
    norse.IAFCell: _summed,
    norse.IAF: _summed,
    norse.LSNNCell: _summed,
    norse.LSNN: _summed,
    norse.LSNNRecurrentCell: _summed,
    norse.LSNNRecurrent: _summed,
    norse.LIFAdExCell: _summed,
    norse.LIFAdEx: _summed,
    norse.LIFAdExRecurrentCell: _summed,
    norse.LIFAdExRecurrent: _summed,
    norse.LIFExCell: _summed,
    norse.LIFEx: _summed,
    norse.LIFExRecurrentCell: _summed,
    norse.LIFExRecurrent: _summed,
    norse.IzhikevichCell: _times_dt,
    norse.Izhikevich: _times_dt,
    norse.IzhikevichRecurrentCell: _times_dt,
    norse.IzhikevichRecurrent: _times_dt,
    norse.LIFRefracCell: _summed,
    norse.LIFRefracRecurrentCell: _summed,
    norse.LIFRefracRecurrent: _summed,
    norse.LIFAdExRefracCell: _summed,
    norse.LIFAdExRefracRecurrentCell: _summed,
    norse.LIFAdExRefracRecurrent: _summed,
    norse.LIFMCRecurrentCell: _summed,
}


def retime(module: Any, factors: Callable[[float], Factors], dt: float, new_dt: float) -> Retimed:
    """Sets the module's timestep, its delay and its refractory period."""
    module.dt = ms_to_seconds(new_dt)
    notes = (*_retime_refractory(module, dt, new_dt), *_retime_delay(module, dt, new_dt))
    _keep_from_autapses(module)
    return Retimed(*factors(new_dt / dt), notes)


def _retime_refractory(module: Any, dt: float, new_dt: float) -> tuple[str, ...]:
    """Norse counts it down in timesteps, of which a part lasts as long as a whole one."""
    if not hasattr(module.p, "rho_reset"):
        return ()
    steps = torch.as_tensor(module.p.rho_reset).double() * (dt / new_dt)
    whole = (steps - steps.round()).abs() < _ROUNDING
    # Else not rounded, so that a model retimed back has the period that it had.
    steps = torch.where(whole, steps.round(), steps)
    module.p = module.p._replace(rho_reset=steps.to(torch.get_default_dtype()))
    if bool(whole.all()):
        return ()
    part = steps[~whole].flatten()[0]
    return (
        f"its refractory period of {format_ms(float(part) * new_dt)} is no whole number of "
        f"timesteps of {format_ms(new_dt)}, and is now {format_ms(float(part.ceil()) * new_dt)}",
    )


def _retime_delay(module: Any, dt: float, new_dt: float) -> tuple[str, ...]:
    if not hasattr(module, "recurrent_weights"):
        return ()
    steps, notes = kept_steps(delay_steps(module), dt, new_dt, "recurrent delay")
    if can_delay(module):
        set_delay_steps(module, steps)
        return notes
    return (
        "its recurrent delay stays one timestep, and so changes from "
        f"{format_ms(dt)} to {format_ms(new_dt)}",
    )


def _keep_from_autapses(module: Any) -> None:
    """Masks the gradient of connections of neurons with themselves, which a copy forgets to."""
    if not hasattr(module, "recurrent_weights") or module.autapses:
        return
    weights = module.recurrent_weights
    # A deep copy leaves tensor hooks behind; torch has no public way to ask for them.
    if weights.requires_grad and not weights._backward_hooks:
        weights.register_hook(lambda gradient: gradient.clone().fill_diagonal_(0.0))
