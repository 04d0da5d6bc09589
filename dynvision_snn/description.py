"""describe(): what the adapters found in a wrapped model, as a table to check before publishing."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from dynvision_snn.adapters import Layer, TimeConstant
from dynvision_snn.adapters.finding import uncompiled
from dynvision_snn.energy import EnergyMeter
from dynvision_snn.engine.feeding import CONSTANT, INPUT, Feeding
from dynvision_snn.engine.witness import gpus, left_as_found, unheard
from dynvision_snn.errors import WrapError
from dynvision_snn.model import TimedModel
from dynvision_snn.observation import watchable
from dynvision_snn.timing import format_ms


@dataclass(frozen=True, slots=True)
class LayerDescription:
    """One row: a neuron layer, a synapse layer, or the weights inside a neuron layer.

    Attributes:
        name: dotted module name in the user's own model.
        kind: class name.
        role: what a neuron layer's output is; ``"synapses"`` for a row of weights.
        units: neurons per sample; None where unknown, or none.
        synapses: connections with a nonzero weight per sample, of a row of weights; None where
            unknown, or none.
        synapses_in: of a neuron layer, the synapses that its input comes through: its own, or those
            of the last layers of weights before it; None where that cannot be told.
        synapses_recurrent: of a neuron layer, the synapses that its own output comes back through
            one timestep later; None where unknown.
        time_constants: in ms, as the layer really behaves at the model's dt.
        membrane_is: ``"before"``, ``"after"`` or ``"without"`` a reset; None where none is shown.
        notes: what its adapter warns about.
    """

    name: str
    kind: str
    role: str
    units: int | None = None
    synapses: int | None = None
    synapses_in: int | None = None
    synapses_recurrent: int | None = None
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
                "units": _counted(row.units),
                "synapses": _counted(row.synapses),
                "in": _counted(row.synapses_in),
                "recurrent": _counted(row.synapses_recurrent),
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
            two timesteps, unheard and without leaving a trace, and stepping, readout, units and
            synapses are told as well.

    Raises:
        WrapError: if the model is not wrapped, or cannot run on such images.

    >>> import torch, dynvision_snn as dvs
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> print(describe(dvs.wrap(net, dt=2.0), torch.ones(1, 4)))
    Sequential: dt 2 ms; called once per timestep; readout: the model's output
    layer  class   role        units  synapses  in  recurrent  time constants  membrane
    0      Linear  synapses    –      32        –   –          –               –
    1      ReLU    activation  –      –         –   –          –               –
    2      Linear  synapses    –      24        –   –          –               –
    """
    if not isinstance(model, TimedModel):
        raise WrapError(
            f"describe takes a wrapped model; received a {type(model).__name__}. "
            "Wrap it first: dvs.wrap(net, dt=...)."
        )
    found = {layer.name: _described(layer, model.dt) for layer in model.layers()}
    uncounted: dict[str, str] = {}
    stepping, readout = model.manner()
    if images is not None:
        with _unnoticed(model) as twin:
            counts, uncounted = _counts(twin, images)
            stepping, readout = twin.manner()
            stateful = [layer for layer in model.layers() if layer.is_stateful]
            joined = _joined(twin, images, stateful, counts)
        for name, row in counts.items():
            known = found.get(name) or LayerDescription(name, row.kind, "synapses")
            found[name] = replace(known, units=row.units, synapses=row.synapses)
        for name, (coming, recurrent) in joined.items():
            found[name] = replace(found[name], synapses_in=coming, synapses_recurrent=recurrent)
    rows = tuple(found[name] for name in _in_order(model, found))
    kind = type(uncompiled(model.net)).__name__
    return Description(kind, model.dt, stepping, readout, rows, uncounted)


def _in_order(model: TimedModel, found: Mapping[str, object]) -> list[str]:
    """Row names in the order of the modules, the weights inside a layer right after it."""
    order: dict[str, None] = {}
    for item in watchable(model):
        if item.name in found:
            order[item.name] = None
        if item.layer is not None:
            order |= dict.fromkeys(row for row in found if _is_inside(row, item.name))
    return list(order)


def _is_inside(row: str, layer: str) -> bool:
    return row.startswith(f"{layer}.")


@contextmanager
def _unnoticed(model: TimedModel) -> Iterator[TimedModel]:
    """The same net in evaluation mode, wrapped alike, to be run without anyone's knowing."""
    net = model.net
    with (
        left_as_found(net.modules()),
        unheard(net),
        torch.no_grad(),
        torch.random.fork_rng(devices=gpus(net)),
    ):
        twin = copy.copy(model)
        twin.check_finite = False
        yield twin.eval()


@dataclass(frozen=True, slots=True)
class _Counts:
    """What a budget tells of a row: its class, neurons and synapses, None where it has none."""

    kind: str
    units: int | None
    synapses: int | None


def _counts(model: TimedModel, images: Tensor) -> tuple[dict[str, _Counts], dict[str, str]]:
    """Every row of a one-step budget, by name, and what it could not count."""
    with EnergyMeter(model) as meter:
        model(images[:1].unsqueeze(0))
    budget = meter.budget()
    rows = {
        row.name: _Counts(row.kind, row.neurons or None, row.synapses or None)
        for row in budget.layers
    }
    return rows, dict(budget.uncounted)


def _joined(
    model: TimedModel, images: Tensor, layers: Sequence[Layer], counts: Mapping[str, _Counts]
) -> dict[str, tuple[int | None, int | None]]:
    """By neuron layer, the synapses that lead into it and those that it feeds back through."""
    # Two timesteps, so that what a model hands back to itself arrives.
    inputs = torch.stack([images[:1]] * 2)
    watched = watchable(model)
    feeding = Feeding(watched, inputs, "analog")
    with feeding:
        model(inputs)
    # A normalisation passes a signal on: the weights before it are those that lead into a neuron.
    weights = {
        item.name: counts[item.name].synapses or 0
        for item in watched
        if item.name in counts and item.layer is None and not isinstance(item.module, _BatchNorm)
    }
    return {layer.name: _around(layer, feeding, weights, counts) for layer in layers}


def _around(
    layer: Layer, feeding: Feeding, weights: Mapping[str, int], counts: Mapping[str, _Counts]
) -> tuple[int | None, int | None]:
    own = {
        inner.name: row.synapses or 0
        for inner in layer.adapter.synapses(layer.module)
        if (row := counts.get(f"{layer.name}.{inner.name}")) is not None
    }
    inputs = [count for name, count in own.items() if name.startswith("input")]
    recurrent = sum(own.values()) - sum(inputs)
    if inputs:
        return sum(inputs), recurrent or None
    before = _last_weights(layer.name, feeding, weights)
    fed_back = {row for row in before if row is not None and _receives(row, layer.name, feeding)}
    recurrent += sum(weights[row] for row in fed_back)
    if None in before:
        return None, recurrent or None
    coming = sum(weights[row] for row in before - fed_back if row is not None)
    return coming or None, recurrent or None


def _last_weights(name: str, feeding: Feeding, weights: Mapping[str, int]) -> frozenset[str | None]:
    """The rows of weights that a layer's input comes from; None among them where that is lost."""
    found: set[str | None] = set()
    for part in feeding.received.get(name, frozenset()):
        if part.kind == "affine":
            if part.source in weights:
                found.add(part.source)
            else:
                found |= _last_weights(part.source, feeding, weights)
        elif part.call is None and part.source not in (INPUT, CONSTANT):
            found.add(None)
    return frozenset(found)


def _receives(weights: str, layer: str, feeding: Feeding) -> bool:
    """Whether a layer's own output reaches these weights."""
    return any(part.source == layer for part in feeding.received[weights])


def _described(layer: Layer, dt: float) -> LayerDescription:
    return LayerDescription(
        layer.name,
        type(layer.module).__name__,
        str(layer.traits.role),
        time_constants=tuple(layer.adapter.time_constants(layer.module, dt)),
        membrane_is=layer.traits.membrane,
        notes=layer.traits.caveats,
    )


def _counted(count: int | None) -> str:
    return "–" if count is None else f"{count:,}"


def _told(constant: TimeConstant) -> str:
    """``membrane 20 ms``, or the range over units; ``(Euler)`` where that is the integrator."""
    low, high = float(constant.tau.min()), float(constant.tau.max())
    times = f"{low:.4g} ms" if low == high else f"{low:.4g} to {high:.4g} ms"
    method = " (Euler)" if constant.integrator == "euler" else ""
    return f"{constant.name} {times}{method}"
