"""Which surrogate derivative a neuron module uses, told from the function it holds.

snnTorch's factories return closures, and Norse names its methods. A function that is neither is not
guessed at: the answer is None, and such a neuron runs its own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

from dynvision_snn.adapters.scan_spec import Surrogate, SurrogateKind

# The factories of snntorch.surrogate whose derivative is a fixed function of the membrane, with the
# closure variables that hold its parameters. SSO is random, LSO raises, custom_surrogate is
# anything.
_SNNTORCH: Mapping[str, tuple[SurrogateKind, tuple[str, ...]]] = {
    "straight_through_estimator": (SurrogateKind.STRAIGHT_THROUGH, ()),
    "triangular": (SurrogateKind.SIGN, ("threshold",)),
    "fast_sigmoid": (SurrogateKind.FAST_SIGMOID, ("slope",)),
    "atan": (SurrogateKind.ATAN, ("alpha",)),
    "heaviside": (SurrogateKind.HEAVISIDE, ()),
    "sigmoid": (SurrogateKind.SIGMOID, ("slope",)),
    "spike_rate_escape": (SurrogateKind.RATE_ESCAPE, ("beta", "slope")),
    "SFS": (SurrogateKind.SPARSE_SIGMOID, ("slope", "B")),
}

# The methods of norse.torch.functional.threshold; SuperSpike ignores its alpha.
_NORSE: Mapping[str, tuple[SurrogateKind, bool]] = {
    "super": (SurrogateKind.FAST_SIGMOID, False),
    "heaviside": (SurrogateKind.NONE, False),
    "triangle": (SurrogateKind.TRIANGLE, True),
    "tanh": (SurrogateKind.TANH, True),
    "circ": (SurrogateKind.CIRCLE, True),
    "heavi_erfc": (SurrogateKind.ERFC, True),
}


def snntorch_surrogate(spike_grad: Callable[..., Any]) -> Surrogate | None:
    """The surrogate that a ``spike_grad`` of snnTorch applies, or None where it cannot be told.

    Args:
        spike_grad: what a factory of ``snntorch.surrogate`` returned, or the bypass that
            ``surrogate_disable=True`` puts in its place.
    """
    if not isinstance(spike_grad, FunctionType):
        return None
    if (spike_grad.__module__, spike_grad.__qualname__) == (
        "snntorch._neurons.neurons",
        "SpikingNeuron._surrogate_bypass",
    ):
        return Surrogate(SurrogateKind.NONE)
    factory, _, inner = spike_grad.__qualname__.partition(".<locals>.")
    if spike_grad.__module__ != "snntorch.surrogate" or inner != "inner":
        return None
    if factory not in _SNNTORCH:
        return None
    kind, names = _SNNTORCH[factory]
    cells = zip(spike_grad.__code__.co_freevars, spike_grad.__closure__ or (), strict=True)
    held = {name: cell.cell_contents for name, cell in cells}
    if set(held) != set(names) or not all(_is_number(held[name]) for name in names):
        return None
    return Surrogate(kind, *(float(held[name]) for name in names))


def norse_surrogate(method: str, alpha: Any) -> Surrogate | None:
    """The surrogate of a Norse ``method`` and ``alpha``, or None where it cannot be told.

    >>> norse_surrogate("super", 100.0)
    Surrogate(kind=<SurrogateKind.FAST_SIGMOID: 'fast_sigmoid'>, a=1.0, b=0.0)
    """
    if method not in _NORSE:
        return None
    kind, uses_alpha = _NORSE[method]
    return Surrogate(kind, float(alpha)) if uses_alpha else Surrogate(kind)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
