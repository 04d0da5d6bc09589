"""One layer's counts: as measured (sums over samples, by phase and timestep), and per sample.

Definitions
- spike: a nonzero value in a spiking layer's output.
- synaptic operation (SynOp): one nonzero presynaptic value times one nonzero weight; biases and
  elementwise gate products are none. An AC on a connection that carries spikes, a MAC on one that
  carries analog values.
- a connection carries spikes if every nonzero value it received in the whole measurement had one
  common magnitude ``|x|``; silence does too.
- dense SynOps: every input times every weight, zero or not; edges exact.
- neuron update: one state update of one neuron at one timestep; active if the neuron's output at
  that timestep is nonzero (a spike, or an analog value). Neurons may share an output: where
  membranes are pooled before any spike, every neuron of a window is updated, and the window's one
  spike makes one of their updates active, since one neuron fires, not each of them.
- spiking unit: an output that can spike. Every spiking neuron has one of its own, but where neurons
  share an output.
- firing rate: spikes per spiking unit and second of simulated time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from dynvision_snn.errors import EnergyError, known_names

Series = Literal[
    "spikes",
    "synops",
    "synops_weighted",
    "synops_dense",
    "neuron_updates",
    "neuron_updates_active",
    "events",
]
"""What is measured of a layer; events are the nonzero values that its synapses received."""

Quantity = Literal[
    "spikes",
    "synops_ac",
    "synops_mac",
    "synops_weighted",
    "synops_dense",
    "neuron_updates",
    "neuron_updates_active",
]
"""What a budget counts of a layer: `Series` with the SynOps split."""

QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerEnergy:
    """One row of a budget; counts are means per sample over the whole run.

    Attributes:
        name: dotted module name; weights inside a neuron module have rows of their own.
        kind: class name of the layer.
        neurons: neurons per sample; 0 for a row of synapses alone.
        synapses: connections with a nonzero weight, shared weights once per place; 0 for a row
            of neurons alone.
        spikes: spikes emitted; 0 where the row emits none.
        firing_rate: Hz, over the units that can spike; None where none can.
        synops_ac: synaptic operations on spikes.
        synops_mac: synaptic operations on analog values.
        synops_weighted: synaptic operations weighted by ``|x|``.
        synops_dense: connections times timesteps, nothing taken as zero.
        neuron_updates: neurons times timesteps.
        neuron_updates_active: those with a nonzero output.
    """

    name: str
    kind: str
    neurons: int
    synapses: int
    spikes: float
    firing_rate: float | None
    synops_ac: float
    synops_mac: float
    synops_weighted: float
    synops_dense: float
    neuron_updates: float
    neuron_updates_active: float


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerCounts:
    """One layer's counts, summed over all samples of a measurement.

    Attributes:
        name: dotted module name; empty where the measured module is itself the layer.
        kind: class name of the layer.
        neurons: neurons per sample.
        spiking_units: units per sample that can spike: its neurons, or fewer where those share an
            output; 0 of a row that has no spikes.
        synapses: connections with a nonzero weight per sample.
        inputs: units per sample that its synapses receive from; 0 for a row of neurons alone.
        outputs: units per sample that its synapses drive.
        series: float64 ``[phases, T]`` by `Series` name. Only what the row has: ``spikes`` of
            spiking rows, ``synops`` of rows with synapses, and so on. Any real tensor is taken,
            and moved to the CPU.
        least: smallest nonzero ``|x|`` that the synapses received in the whole measurement, idle
            time included; infinity in silence.
        most: largest ``|x|``, likewise.

    Raises:
        EnergyError: values that were NaN or infinite, negative counts, shapes that disagree, or
            an unknown series.
    """

    name: str
    kind: str
    neurons: int = 0
    spiking_units: int = 0
    synapses: int = 0
    inputs: int = 0
    outputs: int = 0
    series: Mapping[Series, Tensor]
    least: float = math.inf
    most: float = 0.0

    def __post_init__(self) -> None:
        if math.isnan(self.least) or not math.isfinite(self.most):
            raise EnergyError(
                f"Layer {self.name!r} took in or gave out NaN or infinite values, so that its "
                f"counts mean nothing. Find where they begin, in the layers before it or in the "
                f"input."
            )
        if self.neurons < 0 or self.synapses < 0:
            raise EnergyError(
                f"Layer {self.name!r} has {self.neurons} neurons and {self.synapses} synapses; "
                f"expected at least 0 of each."
            )
        if self.spiking_units <= 0 and "spikes" in self.series:
            raise EnergyError(
                f"Layer {self.name!r} has spikes but {self.spiking_units} spiking_units; expected "
                f"how many of its units can spike."
            )
        checked: dict[Series, Tensor] = {}
        for key, values in self.series.items():
            if key not in get_args(Series):
                raise EnergyError(
                    f"Layer {self.name!r}: unknown series {key!r}. "
                    f"{known_names(str(key), get_args(Series))}"
                )
            counts = values.detach().to("cpu", torch.float64)
            if counts.ndim != 2:
                raise EnergyError(
                    f"Layer {self.name!r}: {key} has shape {list(counts.shape)}; expected "
                    f"[phases, T]."
                )
            if not bool(torch.isfinite(counts).all()):
                raise EnergyError(
                    f"Layer {self.name!r}: {key} holds NaN or infinite counts, as NaN or infinite "
                    f"values give. Find where they begin, in the layers before it or in the input."
                )
            if bool((counts < 0).any()):
                raise EnergyError(f"Layer {self.name!r}: {key} is negative somewhere.")
            checked[key] = counts
        if len({counts.shape for counts in checked.values()}) > 1:
            shapes = {key: list(counts.shape) for key, counts in checked.items()}
            raise EnergyError(f"Layer {self.name!r}: the series' shapes disagree: {shapes}.")
        object.__setattr__(self, "series", checked)

    @property
    def carries_spikes(self) -> bool:
        """Whether everything the synapses received was silence or one common magnitude."""
        return self.most == 0.0 or self.least == self.most

    def quantity(self, quantity: Quantity) -> Tensor | None:
        """``[phases, T]``; None where the row has none of it."""
        if quantity == "synops_ac":
            return self.series.get("synops") if self.carries_spikes else None
        if quantity == "synops_mac":
            return None if self.carries_spikes else self.series.get("synops")
        return self.series.get(quantity)

    def merged(self, other: LayerCounts) -> LayerCounts:
        """Both measurements together; their series must have one shape.

        Raises:
            EnergyError: the rows are not of the same layer.
        """
        for field, mine in self.identity().items():
            theirs = other.identity()[field]
            if mine != theirs:
                raise EnergyError(
                    f"Budgets of different models do not add up: layer {self.name!r} has {field} "
                    f"{mine!r} in one and {theirs!r} in the other."
                )
        if self.series.keys() != other.series.keys():
            raise EnergyError(
                f"Budgets do not add up: layer {self.name!r} counts {', '.join(self.series)} in "
                f"one and {', '.join(other.series)} in the other."
            )
        return LayerCounts(
            **self.identity(),
            series={key: counts + other.series[key] for key, counts in self.series.items()},
            least=min(self.least, other.least),
            most=max(self.most, other.most),
        )

    def identity(self) -> dict[str, Any]:
        """What must agree between two measurements of one layer."""
        return {
            "name": self.name,
            "kind": self.kind,
            "neurons": self.neurons,
            "spiking_units": self.spiking_units,
            "synapses": self.synapses,
            "inputs": self.inputs,
            "outputs": self.outputs,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values, JSON-safe: an infinite `least` becomes None."""
        return {
            **self.identity(),
            "least": None if math.isinf(self.least) else self.least,
            "most": self.most,
            "series": {key: counts.tolist() for key, counts in self.series.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LayerCounts:
        """The layer that `to_dict` wrote.

        Raises:
            EnergyError: keys that are missing or unknown.
        """
        expected = {field.name for field in fields(cls)}
        if values.keys() != expected:
            raise EnergyError(
                f"A layer of a budget has the keys {', '.join(sorted(expected))}; got "
                f"{', '.join(sorted(values))}."
            )
        return cls(
            **{
                **values,
                "least": math.inf if values["least"] is None else values["least"],
                "series": {
                    key: torch.tensor(counts, dtype=torch.float64)
                    for key, counts in values["series"].items()
                },
            }
        )


def table(rows: Sequence[LayerEnergy]) -> list[str]:
    """Lines of aligned columns under a header; the last row, the total, under a rule."""
    names = ["layer", "kind", "neurons", "synapses", "spikes", "rate/Hz"]
    names += ["AC", "MAC", "weighted", "dense", "updates"]
    cells = [names, *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    rule = "-" * max(map(len, lines))
    return [lines[0], rule, *lines[1:-1], rule, lines[-1]]


def _cells(row: LayerEnergy) -> list[str]:
    counts = (
        row.synops_ac,
        row.synops_mac,
        row.synops_weighted,
        row.synops_dense,
        row.neuron_updates,
    )
    return [
        row.name or "(model)",
        row.kind,
        f"{row.neurons:,}",
        f"{row.synapses:,}",
        f"{row.spikes:,.2f}",
        "-" if row.firing_rate is None else f"{row.firing_rate:.2f}",
        *(f"{count:,.1f}" for count in counts),
    ]
