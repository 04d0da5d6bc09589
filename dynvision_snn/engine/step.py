"""The reference engine: a model run as its own library would run it, timestep by timestep.

Whatever it yields is the library's own number, bit for bit; every faster plan is measured against
it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dynvision_snn.adapters.base import map_tensors, tensors_of
from dynvision_snn.engine.calling import Calling
from dynvision_snn.errors import WrapError
from dynvision_snn.observation import Clock


def copied(states: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same state tensors in containers of their own.

    Containers that a library mutates in place (a list of states, passed and returned) stay the
    caller's.
    """
    rebuilt: tuple[Any, ...] = map_tensors(lambda tensor: tensor, states)
    return rebuilt


def first_tensor(outputs: Any) -> Tensor:
    """The tensor that a model's outputs begin with.

    Raises:
        WrapError: if there is none.
    """
    tensor = next(tensors_of(outputs), None)
    if tensor is None:
        raise WrapError(
            f"the model returned {type(outputs).__name__} without a tensor in it; expected an "
            "output [B, classes], alone or before its states."
        )
    return tensor


def run_steps(
    net: nn.Module,
    calling: Calling,
    inputs: Iterable[Tensor],
    states: tuple[Any, ...],
    clock: Clock,
    *,
    keep_outputs: bool,
) -> tuple[list[Tensor], tuple[Any, ...]]:
    """Calls `net` once for each of `inputs` (``[B, ...]`` each), the clock ticking along.

    Returns:
        the first output tensor of every timestep (empty unless `keep_outputs`), and the states
        after the last one.
    """
    outputs: list[Tensor] = []
    for step in inputs:
        output, states = calling.split(calling.call(net, step, states))
        if keep_outputs:
            outputs.append(first_tensor(output))
        clock.t += 1
    return outputs, states


def run_idle(
    net: nn.Module,
    calling: Calling,
    null_input: Tensor,
    n_steps: int,
    states: tuple[Any, ...],
    clock: Clock,
    *,
    of: int | None = None,
) -> tuple[Any, ...]:
    """Lets the state evolve under null input (``[B, ...]``), without a graph.

    With `of`, these are the first of that many idle timesteps.
    """
    clock.t = -n_steps if of is None else -of
    with torch.no_grad():
        _, states = run_steps(
            net, calling, [null_input] * n_steps, states, clock, keep_outputs=False
        )
    return states


def run_sequence(
    net: nn.Module, calling: Calling, inputs: Tensor, states: tuple[Any, ...]
) -> tuple[Any, tuple[Any, ...]]:
    """One call of a model that has its own time loop, with ``[T, B, ...]``.

    Returns:
        its outputs, as it returned them, and its state.
    """
    if calling.time_axis == 1:
        inputs = inputs.transpose(0, 1)
    return calling.split(calling.call(net, inputs, states))
