"""How each neuron of snnTorch is given another timestep; docs/time.md derives the rules.

snnTorch counts in timesteps. Its neurons take their input unscaled, but for Lapicque, which
multiplies it by its ``time_step``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from dynvision_snn.adapters.base import Retimed, kept_steps
from dynvision_snn.adapters.snntorch_delay import can_delay, delay_steps, set_delay_steps
from dynvision_snn.errors import AdapterError
from dynvision_snn.timing import gain_ratio, retimed_decay

_ONE = torch.ones((), dtype=torch.float64)

Rule = Callable[[Any, float, float], Retimed]


def _leaky(module: Any, dt: float, new_dt: float) -> Retimed:
    gain = _retime_decay(module, "beta", dt, new_dt)
    return Retimed(analog=gain, spikes=_ONE, notes=_retime_delay(module, dt, new_dt))


def _synaptic(module: Any, dt: float, new_dt: float) -> Retimed:
    current = _retime_decay(module, "alpha", dt, new_dt)
    membrane = _retime_decay(module, "beta", dt, new_dt)
    # A spike makes the current jump; the current then drives the membrane as a lasting value.
    return Retimed(current * membrane, membrane, _retime_delay(module, dt, new_dt))


def _alpha(module: Any, dt: float, new_dt: float) -> Retimed:
    before = _gain_of_alpha(module)
    _retime_decay(module, "alpha", dt, new_dt)
    _retime_decay(module, "beta", dt, new_dt)
    return Retimed(before / _gain_of_alpha(module), _ONE)


def _gain_of_alpha(module: Any) -> Tensor:
    """Where a unit input settles, but for a factor that does not change with dt."""
    alpha, beta = (getattr(module, name).double().clamp(0, 1) for name in ("alpha", "beta"))
    return 1 / (1 - alpha) - 1 / (1 - beta)


def _lapicque(module: Any, dt: float, new_dt: float) -> Retimed:
    ratio = new_dt / dt
    module.time_step = module.time_step.detach().to(torch.get_default_dtype()) * ratio
    _retime_decay(module, "beta", dt, new_dt)
    return Retimed(analog=_ONE, spikes=_ONE / ratio)


def _kernel(module: Any, dt: float, new_dt: float) -> Retimed:
    gain = gain_ratio(torch.exp(-1 / module.tau.detach().double()), dt, new_dt)
    _set(module, "tau", module.tau.detach().double() * (dt / new_dt))
    notes: tuple[str, ...] = ()
    if module.kernel_truncation_steps is not None:
        module.kernel_truncation_steps, notes = kept_steps(
            module.kernel_truncation_steps, dt, new_dt, "kernel's length"
        )
    return Retimed(analog=gain, spikes=_ONE, notes=notes)


RULES: Mapping[type[nn.Module], Rule] = {
    snn.Leaky: _leaky,
    snn.RLeaky: _leaky,
    snn.Synaptic: _synaptic,
    snn.RSynaptic: _synaptic,
    snn.Alpha: _alpha,
    snn.Lapicque: _lapicque,
    snn.StateLeaky: _kernel,
    snn.LinearLeaky: _kernel,
}


def _retime_decay(module: Any, name: str, dt: float, new_dt: float) -> Tensor:
    """Sets a decay; the factor by which a lasting input keeps its effect, float64."""
    decay = getattr(module, name).detach().clamp(0, 1)
    _set(module, name, retimed_decay(decay, dt, new_dt))
    return gain_ratio(decay, dt, new_dt)


@torch.no_grad()
def _set(module: Any, name: str, value: Tensor) -> None:
    held = getattr(module, name)
    if isinstance(held, nn.Parameter):
        held.copy_(value)
    else:
        setattr(module, name, value.to(held.dtype))


def _retime_delay(module: Any, dt: float, new_dt: float) -> tuple[str, ...]:
    if not hasattr(module, "recurrent"):
        return ()
    steps, notes = kept_steps(delay_steps(module), dt, new_dt, "recurrent delay")
    if steps != delay_steps(module) and not can_delay(module):
        raise AdapterError(
            f"{type(module).__name__} is a subclass of a recurrent neuron, and the delay of its "
            "recurrent spikes, one timestep, cannot be kept in ms. Let an adapter of your own "
            "retime it."
        )
    set_delay_steps(module, steps)
    return notes
