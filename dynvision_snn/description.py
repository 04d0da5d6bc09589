"""describe(): what the adapters found in a wrapped model, as a table to check before publishing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dynvision_snn.adapters import Layer, TimeConstant
from dynvision_snn.energy import EnergyMeter
from dynvision_snn.engine.witness import left_as_found
from dynvision_snn.errors import WrapError
from dynvision_snn.model import TimedModel
from dynvision_snn.timing import format_ms


@dataclass(frozen=True, slots=True)
class LayerDescription:
    """One row: a neuron layer, a synapse layer, or the weights inside a neuron layer.

    Attributes:
        name: dotted module name in the user's own model.
        kind: class name.
        role: what a neuron layer's output is; ``"synapses"`` for a row of weights.
        units: neurons per sample; None where unknown, or none.
        synapses: connections with a nonzero weight per sample; None where unknown, or none.
        time_constants: in ms, as the layer really behaves at the model's dt.
        membrane_is: ``"before"``, ``"after"`` or ``"without"`` a reset; None where none is shown.
        notes: what its adapter warns about.
    """

    name: str
    kind: str
    role: str
    units: int | None = None
    synapses: int | None = None
    time_constants: Sequence[TimeConstant] = ()
    membrane_is: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Description:
    """What was found in a model.

    Attributes:
        model: class name of the model inside.
        dt: length of a timestep in ms.
        stepping: how it is called; None before its first run.
        readout: the layer whose membrane is decoded, or ``"output"``; None before its first run.
        layers: the rows, in the order of the model's modules.
        uncounted: modules that an energy budget cannot count, and why.
    """

    model: str
    dt: float
    stepping: str | None
    readout: str | None
    layers: Sequence[LayerDescription]
    uncounted: dict[str, str]

    def rows(self) -> list[dict[str, str]]:
        """The rows as text, by column."""
        return [
            {
                "layer": row.name or "(model)",
                "class": row.kind,
                "role": row.role,
                "units": "–" if row.units is None else f"{row.units:,}",
                "synapses": "–" if row.synapses is None else f"{row.synapses:,}",
                "time constants": ", ".join(map(_told, row.time_constants)) or "–",
                "membrane": "–" if row.membrane_is is None else f"{row.membrane_is} reset",
            }
            for row in self.layers
        ]

    @property
    def title(self) -> str:
        """Model, timestep, stepping and readout in one line."""
        unknown = "found out at its first run"
        return (
            f"{self.model}: dt {format_ms(self.dt)}; {self.stepping or f'stepping {unknown}'}; "
            f"readout: {self.readout or unknown}"
        )

    @property
    def footnotes(self) -> list[str]:
        """What its adapters warn about, and what an energy budget cannot count."""
        notes = [f"{row.name}: {note}" for row in self.layers for note in row.notes]
        return notes + [f"{name} is not counted: {why}" for name, why in self.uncounted.items()]

    def __str__(self) -> str:
        rows = self.rows()
        columns = list(rows[0])
        widths = {c: max(len(c), *(len(row[c]) for row in rows)) for c in columns}
        lines = [
            self.title,
            "  ".join(c.ljust(widths[c]) for c in columns).rstrip(),
            *("  ".join(row[c].ljust(widths[c]) for c in columns).rstrip() for row in rows),
            *self.footnotes,
        ]
        return "\n".join(lines)


def describe(model: TimedModel, images: Tensor | None = None) -> Description:
    """What the adapters found: layers, roles, time constants in ms, synapses.

    Args:
        model: a wrapped model.
        images: what one timestep shows, ``[B, *features]``. With it the model is run for one
            timestep, without leaving a trace, and stepping, readout, units and synapses are told
            as well.

    Raises:
        WrapError: if the model is not wrapped, or cannot run on such images.

    >>> import torch, dynvision_snn as dvs
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> print(describe(dvs.wrap(net, dt=2.0), torch.ones(1, 4)))
    Sequential: dt 2 ms; called once per timestep; readout: the model's output
    layer  class   role        units  synapses  time constants  membrane
    0      Linear  synapses    –      32        –               –
    1      ReLU    activation  –      –         –               –
    2      Linear  synapses    –      24        –               –
    """
    if not isinstance(model, TimedModel):
        raise WrapError(
            f"describe takes a wrapped model; received a {type(model).__name__}. "
            "Wrap it first: dvs.wrap(net, dt=...)."
        )
    measured, uncounted = _measured(model, images)
    neurons = {layer.name: _described(layer, model.dt) for layer in model.layers()}
    rows = []
    for name in _in_order(model, neurons, measured):
        kind, units, synapses = measured.get(name, ("", None, None))
        known = neurons.get(name) or LayerDescription(name, kind, "synapses")
        rows.append(replace(known, units=units, synapses=synapses))
    return Description(type(model.net).__name__, model.dt, *model.manner(), tuple(rows), uncounted)


def _in_order(
    model: TimedModel, neurons: Mapping[str, object], measured: Mapping[str, object]
) -> list[str]:
    """Row names in the order of the modules, the weights inside a layer right after it."""
    order: dict[str, None] = {}
    for name, _ in model.net.named_modules():
        if name in neurons or name in measured:
            order[name] = None
        if name in neurons:
            inner = f"{name}." if name else ""
            order |= dict.fromkeys(row for row in measured if row.startswith(inner))
    return list(order)


def _measured(
    model: TimedModel, images: Tensor | None
) -> tuple[dict[str, tuple[str, int | None, int | None]], dict[str, str]]:
    """Class, neurons and synapses of every row of a one-step budget, by name; what it lacks."""
    if images is None:
        return {}, {}
    with left_as_found(model.net.modules()), torch.no_grad(), EnergyMeter(model) as meter:
        model(images[:1].unsqueeze(0))
    budget = meter.budget()
    return {
        row.name: (row.kind, row.neurons or None, row.synapses or None) for row in budget.layers
    }, dict(budget.uncounted)


def _described(layer: Layer, dt: float) -> LayerDescription:
    return LayerDescription(
        layer.name,
        type(layer.module).__name__,
        str(layer.traits.role),
        time_constants=tuple(layer.adapter.time_constants(layer.module, dt)),
        membrane_is=layer.traits.membrane,
        notes=layer.traits.caveats,
    )


def _told(constant: TimeConstant) -> str:
    """``membrane 20 ms``, or the range over units; ``(Euler)`` where that is the integrator."""
    low, high = float(constant.tau.min()), float(constant.tau.max())
    times = f"{low:.4g} ms" if low == high else f"{low:.4g} to {high:.4g} ms"
    method = " (Euler)" if constant.integrator == "euler" else ""
    return f"{constant.name} {times}{method}"
