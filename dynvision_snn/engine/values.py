"""What the nodes of a graph yield: states going in, values looked up, last timesteps coming out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from dynvision_snn.engine.timed import PerStep, Timed


@dataclass(frozen=True, eq=False, slots=True)
class Last:
    """A state variable of which the last timestep alone was kept."""

    value: Any


def kept(over_time: Tensor | None, final: Tensor | None) -> Any:
    """A state variable at every timestep, or at the last one alone."""
    return Last(final) if over_time is None else Timed(over_time)


def last(value: Any) -> Any:
    """The values after the last timestep."""
    if isinstance(value, Last):
        return value.value
    if isinstance(value, Timed):
        return value.last()
    if isinstance(value, PerStep):
        return value.steps[-1]
    if isinstance(value, dict):
        return {key: last(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(last(item) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(last(item) for item in value)
    return value


def bind(states: Any, given: Any, values: dict[fx.Node, Any]) -> None:
    """Gives every placeholder its state; None where the run starts from reset state."""
    if isinstance(states, fx.Node):
        values[states] = given
    elif isinstance(states, dict):
        for key, item in states.items():
            bind(item, None if given is None else given[key], values)
    elif isinstance(states, tuple | list):
        for k, item in enumerate(states):
            bind(item, None if given is None else given[k], values)


def looked_up(value: Any, values: Mapping[fx.Node, Any]) -> Any:
    """`value` with every node replaced by what it yielded."""
    if isinstance(value, fx.Node):
        return values[value]
    if isinstance(value, dict):
        return {key: looked_up(item, values) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(looked_up(item, values) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(looked_up(item, values) for item in value)
    return value
