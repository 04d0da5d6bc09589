"""One sample's run, kept to be looked at: its readout over time and the spikes of every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dynvision_snn.adapters import Role
from dynvision_snn.errors import ObservationError
from dynvision_snn.loading import LoadedBatch
from dynvision_snn.model import TimedModel

__all__ = ["Raster", "Trace", "trace", "untraced"]

MOST_UNITS = 200
"""Units of a layer whose spikes are kept; more could not be told apart in a figure."""


@dataclass(frozen=True)
class Raster:
    """Spikes of one layer for one sample.

    Attributes:
        units: units of the layer.
        shown: of how many of them, the first ones, the spikes are kept.
        spikes: pairs of timestep and unit.
    """

    units: int
    shown: int
    spikes: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Trace:
    """One sample's run.

    Attributes:
        labels: its class; one for each stimulus, or timestep, where they have one.
        membrane: what is decoded, ``[T, classes]``; of no timestep where none is kept.
        rasters: by the name of a spiking layer.
        missing: why there are no rasters, or nothing at all.
    """

    labels: tuple[int, ...]
    membrane: Tensor
    rasters: Mapping[str, Raster] = field(default_factory=dict)
    missing: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, JSON-safe."""
        return {
            "labels": list(self.labels),
            "membrane": self.membrane.tolist(),
            "rasters": {
                name: {
                    "units": raster.units,
                    "shown": raster.shown,
                    "spikes": [list(spike) for spike in raster.spikes],
                }
                for name, raster in self.rasters.items()
            },
            "missing": self.missing,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Trace:
        """What `to_dict` wrote."""
        return cls(
            tuple(values["labels"]),
            torch.tensor(values["membrane"], dtype=torch.float32).reshape(
                len(values["membrane"]), -1 if values["membrane"] else 0
            ),
            {
                name: Raster(
                    raster["units"], raster["shown"], tuple((t, u) for t, u in raster["spikes"])
                )
                for name, raster in values["rasters"].items()
            },
            values["missing"],
        )


def trace(model: TimedModel, sample: LoadedBatch, every: float | None = None) -> Trace:
    """Runs one sample and keeps what it did.

    Args:
        model: a wrapped model, which has run before.
        sample: a batch of one sample.
        every: run it in chunks of this many ms, and keep no spikes.
    """
    labels = tuple(sample.labels.flatten().tolist())
    presentation, axis = sample.presentation, sample.time_axis
    if every is not None:
        chunks = model.chunks(sample.inputs, presentation, every=every, time_axis=axis)
        membrane = torch.cat([chunk.membrane[:, 0].float().cpu() for chunk in chunks])
        return Trace(labels, membrane, missing="a run in chunks keeps no spikes")
    spiking = [layer.name for layer in model.layers() if layer.traits.role is Role.SPIKING]
    missing = ""
    try:
        run = model(sample.inputs, presentation, time_axis=axis, record=spiking)
    except ObservationError as error:
        # A layer that is called several times per timestep is counted, but has no raster.
        missing = str(error)
        run = model(sample.inputs, presentation, time_axis=axis)
    return Trace(
        labels,
        run.membrane[:, 0].float().cpu(),
        {
            name: _raster(layer.spikes[:, 0])
            for name, layer in run.layers.items()
            if layer.spikes is not None
        },
        missing,
    )


def untraced(sample: LoadedBatch) -> Trace:
    """A trace of one sample of which nothing is kept by timestep."""
    labels = tuple(sample.labels.flatten().tolist()) if sample.labels.ndim == 1 else ()
    return Trace(labels, torch.zeros(0, 0), missing="nothing is kept by timestep")


def _raster(spikes: Tensor) -> Raster:
    """Of one sample's ``[T, *units]``."""
    flat = spikes.reshape(len(spikes), -1)
    units = flat.shape[1]
    shown = min(units, MOST_UNITS)
    events = flat[:, :shown].nonzero().tolist()
    return Raster(units, shown, tuple((step, unit) for step, unit in events))
