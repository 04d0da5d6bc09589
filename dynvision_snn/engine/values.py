"""What the nodes of a graph yield: states going in, values looked up, last timesteps coming out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from dynvision_snn.engine.in_place import writes_inside
from dynvision_snn.engine.timed import PerStep, Timed, at_step


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


def delayed(value: Any, first: Any, n_steps: int) -> Any:
    """What was made at the timestep before, at each of `n_steps`; at the first of them, `first`."""
    alike = isinstance(value, Timed) and isinstance(first, Tensor)
    if alike and first.shape == value.values.shape[1:] and first.dtype == value.values.dtype:
        return Timed(torch.cat([first.unsqueeze(0), value.over_time()[:-1]]))
    if isinstance(value, tuple) and hasattr(value, "_fields") and isinstance(first, tuple):
        pairs = zip(value, first, strict=True)
        return type(value)(*(delayed(item, start, n_steps) for item, start in pairs))
    return PerStep((first, *(at_step(value, t) for t in range(n_steps - 1))))


def attribute(root: nn.Module, target: str) -> Any:
    """What a path of names leads to."""
    owner: Any = root
    for name in target.split("."):
        owner = getattr(owner, name)
    return owner


def computed(
    node: fx.Node, now: Mapping[fx.Node, Any], module_of: Mapping[fx.Node, nn.Module]
) -> Any:
    """What `node` yields, given what the others did."""
    module = module_of.get(node)

    def given(operand: fx.Node) -> Any:
        # One tensor may be the value of several timesteps.
        return now[operand].clone() if writes_inside(module) else now[operand]

    args, kwargs = map_arg(node.args, given), map_arg(node.kwargs, given)
    if module is not None:
        return module(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)
