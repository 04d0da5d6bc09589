"""Norse's recurrent neurons with a recurrent delay of several timesteps.

Norse's recurrent spikes arrive one timestep after they were fired, however long that is. A network
that is retimed to a shorter timestep keeps the delay in ms by a `Delayed` step function. The state
that it returns holds the spikes still on their way as ``z``, oldest first: ``[steps, B, units]``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Delayed:
    """A step function whose recurrent spikes arrive after several timesteps.

    Attributes:
        step: Norse's own, which takes the spikes that arrive as its state's ``z``.
        steps: timesteps from a spike to its arrival.
    """

    step: Callable[..., tuple[Tensor, Any]]
    steps: int

    def __call__(self, inputs: Tensor, state: Any, *weights_p_dt: Any) -> tuple[Tensor, Any]:
        """One timestep."""
        spikes = spikes_of(state)
        # The state that a sequence starts from has the spikes of one timestep.
        if spikes.ndim == inputs.ndim:
            spikes = padded(spikes.unsqueeze(0), self.steps)
        output, after = self.step(inputs, with_spikes(state, spikes[0]), *weights_p_dt)
        fired = spikes_of(after).unsqueeze(0)
        return output, with_spikes(after, torch.cat([spikes[1:], fired]))


def delay_steps(module: Any) -> int:
    """After how many timesteps the recurrent spikes of `module` arrive."""
    return module.activation.steps if isinstance(module.activation, Delayed) else 1


def can_delay(module: Any) -> bool:
    """Whether `set_delay_steps` can change the delay."""
    return module.activation is not None


def set_delay_steps(module: Any, steps: int) -> None:
    """Changes the delay of a recurrent neuron in place."""
    held = module.activation
    plain = held.step if isinstance(held, Delayed) else held
    module.activation = plain if steps == 1 else Delayed(plain, steps)


def padded(spikes: Tensor, steps: int) -> Tensor:
    """Spikes over time, with silence before them, at least `steps` timesteps in all."""
    missing = max(0, steps - spikes.shape[0])
    return torch.cat([torch.zeros_like(spikes[:1])] * missing + [spikes])


def spikes_of(state: Any) -> Tensor:
    """The spikes ``z`` in a recurrent neuron's state; refractory ones nest another's state."""
    if "z" in state._fields:
        spikes: Tensor = state.z
        return spikes
    return spikes_of(next(value for value in state if isinstance(value, tuple)))


def with_spikes(state: Any, spikes: Tensor) -> Any:
    """The state with other spikes ``z``."""
    if "z" in state._fields:
        return state._replace(z=spikes)
    return type(state)(
        *(with_spikes(value, spikes) if isinstance(value, tuple) else value for value in state)
    )
