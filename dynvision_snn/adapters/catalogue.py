"""The neuron classes that the built-in adapters know, as the documentation lists them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from torch import nn

from dynvision_snn.errors import AdapterError


@dataclass(frozen=True, slots=True)
class CatalogueRow:
    """What an adapter does with one class of its library.

    Attributes:
        name: the class's name.
        role: what its output is; empty where the class is refused.
        call: ``"timestep"`` or ``"sequence"``: how much time one call covers.
        membrane: which membrane is recorded.
        state: further state variables.
        synapses: weights inside the module, by the names of their rows in a budget.
        note: caveats and conditions, or the reason of a refusal.
    """

    name: str
    role: str = ""
    call: str = ""
    membrane: str = ""
    state: str = ""
    synapses: str = ""
    note: str = ""


def class_of(module: nn.Module, known: Collection[type[nn.Module]]) -> type[nn.Module] | None:
    """The nearest class of `module` that is among `known`: subclasses are served as their base."""
    return next((cls for cls in type(module).__mro__ if cls in known), None)


def refusal(library: str, module: nn.Module, reason: str) -> AdapterError:
    """The error for a neuron that cannot be served."""
    return AdapterError(f"{library}'s {type(module).__name__} is refused: {reason}.")


def unknown(library: str, module: nn.Module, known: Iterable[type[nn.Module]]) -> AdapterError:
    """The error for a neuron class that is in no table."""
    names = ", ".join(cls.__name__ for cls in known)
    return AdapterError(
        f"{type(module).__name__} is a neuron class of {library} that its adapter does not know "
        f"(it knows {names}, and subclasses of these). Serve it with an adapter of your own, "
        "passed as adapters=[MyAdapter()]: docs/adapters.md shows how."
    )
