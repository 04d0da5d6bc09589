"""snnTorch's recurrent neurons with a recurrent delay of several timesteps.

snnTorch's recurrent spikes arrive one timestep after they were fired, however long that is. A
network that is retimed to a shorter timestep keeps the delay in ms by one of these classes. They
hold the spikes that are still on their way in ``spk``, oldest first: ``[delay_steps, B, *units]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn


class DelayedRLeaky(snn.RLeaky):
    """An RLeaky whose recurrent spikes arrive after `delay_steps` timesteps."""

    delay_steps: int

    def forward(self, input_: Tensor, spk: Any = None, mem: Any = None) -> Any:
        """One timestep; `spk`, the last timestep's spikes, is not needed and not used."""
        return _delayed(self, super().forward, input_, mem=mem)


class DelayedRSynaptic(snn.RSynaptic):
    """An RSynaptic whose recurrent spikes arrive after `delay_steps` timesteps."""

    delay_steps: int

    def forward(self, input_: Tensor, spk: Any = None, syn: Any = None, mem: Any = None) -> Any:
        """One timestep; `spk`, the last timestep's spikes, is not needed and not used."""
        return _delayed(self, super().forward, input_, syn=syn, mem=mem)


_DELAYED: Mapping[type[nn.Module], type[nn.Module]] = {
    snn.RLeaky: DelayedRLeaky,
    snn.RSynaptic: DelayedRSynaptic,
}
_PLAIN = {delayed: plain for plain, delayed in _DELAYED.items()}


def delay_steps(module: Any) -> int:
    """After how many timesteps the recurrent spikes of `module` arrive."""
    return module.delay_steps if type(module) in _PLAIN else 1


def can_delay(module: nn.Module) -> bool:
    """Whether `set_delay_steps` can change the delay; a user's subclass may compute anything."""
    return type(module) in _DELAYED or type(module) in _PLAIN


def set_delay_steps(module: Any, steps: int) -> None:
    """Changes the delay of a recurrent neuron in place; it forgets the spikes on their way."""
    plain = _PLAIN.get(type(module), type(module))
    module.__class__ = plain if steps == 1 else _DELAYED[plain]
    module.spk = torch.zeros(0, device=module.spk.device)
    if steps == 1:
        vars(module).pop("delay_steps", None)
    else:
        module.delay_steps = steps


def due_spikes(module: Any, inputs: Tensor) -> Tensor | None:
    """The spikes that arrive in the next call, ``[B, *units]``; None where none are underway."""
    held: Tensor = module.spk
    return held[0] if held.shape == (module.delay_steps, *inputs.shape) else None


def _delayed(module: Any, forward: Callable[..., Any], inputs: Tensor, **states: Any) -> Any:
    shape = (module.delay_steps, *inputs.shape)
    on_their_way = module.spk
    if on_their_way.shape != shape:
        on_their_way = torch.zeros(shape, dtype=inputs.dtype, device=inputs.device)
    module.spk = on_their_way[0]
    output = forward(inputs, **states)
    module.spk = torch.cat([on_their_way[1:], module.spk.unsqueeze(0)])
    return output
