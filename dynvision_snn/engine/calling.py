"""How a model is called: once per timestep or once per run, and how it takes and returns its state.

Models in the wild keep their state in three places: inside their modules (nothing to pass), in one
argument and the last element of what they return (``out, state = net(x, state)``), or in several of
each (``spk, mem1, mem2 = net(x, mem1, mem2)``). A `Calling` says which, so that every engine steps
all of them alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any, Literal

from torch import Tensor, nn

from dynvision_snn.adapters import Layer
from dynvision_snn.adapters.finding import uncompiled
from dynvision_snn.errors import WrapError

Stepping = Literal["step", "sequence"]

# The names under which models in the wild take a state. An optional argument of any other name is
# left at its default.
_STATE_NAME = re.compile(
    r"^((prev|last|init|old)_)?"
    r"(state|hidden|hx|hc|mem|membrane|potential|voltage|spk|syn|cell|carry|[chisuvz])s?"
    r"(_?(\d+|t|0|in|prev|state|states))*$"
    r"|_?(state|states|hidden)$"
)


@dataclass(frozen=True, slots=True)
class Calling:
    """How a model is called.

    Attributes:
        stepping: ``"step"``: once per timestep with ``[B, ...]``; ``"sequence"``: once per run with
            all timesteps.
        time_axis: where a ``"sequence"`` model has time, in its input and outputs.
        states: the names of the arguments that take its state; empty where it keeps the state
            inside or takes none.
        by_name: how many of these, the last ones, are passed by name.
        returns_state: whether all that it returns is its state, as torch's bare cells do.
    """

    stepping: Stepping
    time_axis: int = 0
    states: tuple[str, ...] = ()
    by_name: int = 0
    returns_state: bool = False

    def call(self, net: nn.Module, inputs: Tensor, states: Sequence[Any]) -> Any:
        """One call of the model; where the states are None it starts from its initial state."""
        first_named = len(self.states) - self.by_name
        named = zip(self.states[first_named:], states[first_named:], strict=True)
        return net(inputs, *states[:first_named], **dict(named))

    @property
    def initial_states(self) -> tuple[None, ...]:
        """What is passed for the states at the first call: nothing, for each."""
        return (None,) * len(self.states)

    def split(self, output: Any) -> tuple[Any, tuple[Any, ...]]:
        """What the model returned, as its outputs and the state for its next call.

        Raises:
            WrapError: if it takes states that it does not return.
        """
        n_states = len(self.states)
        if n_states == 0:
            return output, ()
        if self.returns_state:
            return output, (output,)
        if isinstance(output, tuple | list):
            if len(output) > n_states:
                outputs = output[: len(output) - n_states]
                return outputs[0] if len(outputs) == 1 else outputs, tuple(output[-n_states:])
            nested = output[-1]
            if len(output) == 2 and isinstance(nested, tuple | list) and len(nested) == n_states:
                return output[0], tuple(nested)
        taken = ", ".join(self.states)
        raise WrapError(
            f"the model takes its state as ({taken}) but returned {_kind(output)}; expected "
            f"(output, {taken}). Return every state that forward takes, in the same order, after "
            "the output."
        )


@dataclass(frozen=True, slots=True)
class Arguments:
    """What ``net.forward`` takes beside its input.

    Attributes:
        states: the names of those that take its state, in order.
        by_name: how many of these, the last ones, must be passed by name.
        others: the names of those that are left at their defaults.
    """

    states: tuple[str, ...] = ()
    by_name: int = 0
    others: tuple[str, ...] = ()


def arguments_of(net: nn.Module, root: Layer | None) -> Arguments:
    """The arguments of ``net.forward`` after its input, told by their names.

    Args:
        net: the model.
        root: `net` itself as a neuron layer, where it is one.

    Raises:
        WrapError: if forward requires an argument that is neither the input nor a state.
    """
    if root is not None and root.adapter.state(root.module):
        return Arguments()
    accepted = signature(uncompiled(net).forward).parameters.values()
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [p for p in accepted if p.kind in (*positional, Parameter.KEYWORD_ONLY)]
    takes_input = bool(parameters) and parameters[0].kind in positional
    if not takes_input and any(p.kind is Parameter.VAR_POSITIONAL for p in accepted):
        return Arguments()  # a forward that hands on whatever it gets
    if not takes_input:
        raise WrapError(
            f"{type(net).__name__}.forward takes no input; expected forward(x) or "
            "forward(x, state)."
        )
    states: list[str] = []
    others: list[str] = []
    by_name = 0
    for parameter in parameters[1:]:
        named_like_a_state = _STATE_NAME.search(parameter.name) is not None
        if parameter.default is Parameter.empty and not named_like_a_state:
            raise WrapError(
                f"{type(net).__name__}.forward requires the argument {parameter.name!r}, which "
                "looks like no state. A TimedModel passes the input and states only: give it a "
                "default, or wrap a small module that passes it."
            )
        behind_others = bool(others) or parameter.kind is Parameter.KEYWORD_ONLY
        if (
            not named_like_a_state
            or parameter.default not in (None, Parameter.empty)
            or (behind_others and parameter.kind is Parameter.POSITIONAL_ONLY)
        ):
            others.append(parameter.name)
            continue
        states.append(parameter.name)
        by_name += behind_others
    return Arguments(tuple(states), by_name, tuple(others))


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"one tensor of shape {list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
