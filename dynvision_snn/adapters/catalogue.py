"""The neuron classes that the built-in adapters know, as the documentation lists them.

`layers_page` is ``docs/layers.md``; write it anew, where every library is installed, with::

    python -m dynvision_snn.adapters.catalogue > docs/layers.md
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import groupby
from typing import TypeVar

from torch import nn

from dynvision_snn.errors import AdapterError

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class CatalogueRow:
    """What an adapter does with one class of its library.

    Attributes:
        name: the class's name.
        role: what its output is; empty where the class is refused.
        call: ``"timestep"`` or ``"sequence"``: how much time one call covers.
        membrane: which membrane is recorded.
        state: further state variables.
        time_constants: by name, with the integrator.
        synapses: weights inside the module, by the names of their rows in a budget.
        note: caveats and conditions, or the reason of a refusal.
    """

    name: str
    role: str = ""
    call: str = ""
    membrane: str = ""
    state: str = ""
    time_constants: str = ""
    synapses: str = ""
    note: str = ""


def library_class(module: nn.Module, library: str) -> type | None:
    """The nearest class of `module` that the library itself defines.

    A user's subclass is served as the class that it extends; a class of the library is served only
    where it is known itself, for what it changes cannot be.
    """
    return next(
        (cls for cls in type(module).__mro__ if cls.__module__.partition(".")[0] == library), None
    )


def row_of(module: nn.Module, table: Mapping[type[nn.Module], Row]) -> Row:
    """The row of a module that is known to have one."""
    row = table.get(type(module))
    if row is not None:
        return row
    return next(table[cls] for cls in type(module).__mro__ if cls in table)


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


_INTRODUCTION = """\
# Layers

Every class that the built-in adapters serve or refuse, written by
`python -m dynvision_snn.adapters.catalogue` from their tables. A subclass of a class below is
served like it. A layer of another library needs an adapter of its own; see
[adapters](adapters.md).

- **Output** is what the layer hands on: spikes, its membrane (integrator), an analog hidden state
  (recurrent) or an activation.
- **Call** is how much time one call covers.
- **Membrane** says which one is recorded.
- **Time constants** are told in ms: of exact exponential decay, or of Euler's.
- **Synapses** are weights inside the layer; each has a row of its own in an energy budget.
- What is *warned about* raises an `AdapterWarning` when the model is wrapped, what is *refused* an
  `AdapterError`.
"""

_HEADINGS = (
    "Class",
    "Output",
    "Call",
    "Membrane",
    "Further state",
    "Time constants",
    "Synapses",
    "Notes",
)


def layers_page(libraries: Sequence[tuple[str, Iterable[CatalogueRow]]]) -> str:
    """The page, from each library's heading and rows; neighbours that are alike share a line.

    >>> page = layers_page([("Mine", [CatalogueRow("Cell", "spiking", "timestep")])])
    >>> page.splitlines()[-1]
    '| `Cell` | spiking | timestep |  |  |  |  |  |'
    """
    parts = [_INTRODUCTION]
    for heading, rows in libraries:
        lines = [f"## {heading}", "", _line(_HEADINGS), "|" + "---|" * len(_HEADINGS)]
        for cells, alike in groupby(rows, key=lambda row: astuple(row)[1:]):
            lines.append(_line((", ".join(f"`{row.name}`" for row in alike), *cells)))
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Prints the page; every library must be installed."""
    from dynvision_snn.adapters.norse import NorseAdapter
    from dynvision_snn.adapters.pytorch import TorchAdapter
    from dynvision_snn.adapters.snntorch import SnnTorchAdapter
    from dynvision_snn.adapters.spikingjelly import SpikingJellyAdapter

    libraries = [
        ("snnTorch", SnnTorchAdapter().rows()),
        ("Norse", NorseAdapter().rows()),
        ("SpikingJelly", SpikingJellyAdapter().rows()),
        ("PyTorch", TorchAdapter().rows()),
    ]
    print(layers_page(libraries), end="")


if __name__ == "__main__":
    main()
