"""The table of every neuron class that the built-in adapters know, for the documentation."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, slots=True)
class CatalogueRow:
    """What one adapter does with one class of its library.

    Attributes:
        name: the class's name.
        role: what its output is; empty where the class is refused.
        call: ``"timestep"`` or ``"sequence"``: how much time one call covers.
        membrane: which membrane is recorded, in words.
        state: further state variables, comma-separated.
        synapses: inner synapses, comma-separated.
        note: caveats and conditions, or the reason of a refusal.
    """

    name: str
    role: str = ""
    call: str = ""
    membrane: str = ""
    state: str = ""
    synapses: str = ""
    note: str = ""


def class_of(module: nn.Module, known: Container[type[nn.Module]]) -> type[nn.Module] | None:
    """The nearest class of `module` that is among `known`, so that subclasses are served too."""
    return next((cls for cls in type(module).__mro__ if cls in known), None)
