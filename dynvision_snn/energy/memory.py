"""A memory-aware estimate: operations, addressing and memory accesses.

After Lemaire et al., "An Analytical Estimation of Spiking Neural Networks Energy Efficiency",
ICONIP 2022 (arXiv 2210.13107). A sum of three terms::

    E = E_operations + E_addressing + E_memory
    E_operations = ACs * e_add + MACs * (e_add + e_mul)
    E_memory     = words read and written * cost of an access to their buffer

Dimensions: J/operation * operations/sample = J/sample; J/access * accesses/sample = J/sample. The
cost of an access grows with the buffer, piecewise linearly through the SRAMs of Horowitz (ISSCC
2014): 10, 20 and 100 pJ for 8 KB, 32 KB and 1 MB.

Counted of a connection that carries spikes, event by event: each synaptic operation is an addition,
reads a weight, and reads and writes a potential; each takes an addition to find its address, and
each event at a convolution two multiply-accumulates for its coordinates; each event is read. Of a
connection that carries analog values, every weight is worked through at every timestep, zero or
not. Of a neuron: each update adds the bias, multiplies by the leak, and reads and writes the
potential; each spike subtracts the threshold and is written.

Where this differs from the paper: synaptic operations are the measured ones, edges and zero weights
exact, instead of events times the kernel's size; potentials and biases are touched at every
timestep, as in a network stepped by a clock, not once per inference; and of the analog
convolution's addresses its kernel's own size, the smallest of three terms, is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from itertools import pairwise
from numbers import Real
from typing import Any

from dynvision_snn.energy.budget import EnergyBudget
from dynvision_snn.energy.hardware import ProfileLike, resolve_profile
from dynvision_snn.energy.layers import LayerCounts, Series
from dynvision_snn.errors import EnergyError, known_names

KIB = 1024
ACCESS_ENERGY: tuple[tuple[float, float], ...] = (
    (0.0, 0.0),
    (8.0 * KIB, 10e-12),
    (32.0 * KIB, 20e-12),
    (1024.0 * KIB, 100e-12),
)
"""Bytes of an SRAM, and J of one access to it: Horowitz, ISSCC 2014, 45 nm."""


def access_energy(buffer: float) -> float:
    """J of one access to a buffer of so many bytes, linear between the known sizes.

    Raises:
        EnergyError: a size that is no positive number, or beyond 1 MB, the largest that has a
            figure.

    >>> access_energy(20 * KIB)
    1.5e-11
    """
    if isinstance(buffer, bool) or not isinstance(buffer, Real) or not buffer > 0:
        raise EnergyError(f"A buffer has a positive number of bytes; got {buffer!r}.")
    for (size, energy), (larger, more) in pairwise(ACCESS_ENERGY):
        if buffer <= larger:
            return energy + (more - energy) * (buffer - size) / (larger - size)
    raise EnergyError(
        f"A buffer of {buffer:,.0f} bytes has no figure: the source ends at 1 MB of SRAM. Split it "
        "into banks and give the size of one, or price memory by a HardwareProfile's "
        "memory_access."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryModel:
    """Energy per sample from operations, addresses and memory, on a budget's counts.

    Attributes:
        weight_buffer: bytes of the memory that holds the weights and biases.
        potential_buffer: bytes of the memory that holds the membrane potentials.
        event_buffer: bytes of the queues (spikes) or maps (analog values) between layers.
        add: J per addition; Horowitz's 32-bit integer one by default.
        multiply: J per multiplication, likewise.
        access_bytes: bytes per access of the figures; Horowitz's 64-bit word by default (other
            sources say 32 bits).
        value_bytes: bytes of a weight, a potential or an event.
        memory_access: J per byte, instead of the buffers' own figures. `on` takes it from a
            `HardwareProfile` that has one.
        leak: whether potentials leak, which costs a multiplication per update.
        bias: whether a bias is read and added at every update.

    Raises:
        EnergyError: figures that are no positive numbers, or a buffer without a figure.

    >>> MemoryModel(weight_buffer=8 * KIB, potential_buffer=8 * KIB, event_buffer=KIB).source[:14]
    'Lemaire et al.'
    """

    weight_buffer: float
    potential_buffer: float
    event_buffer: float
    add: float = 0.1e-12
    multiply: float = 3.1e-12
    access_bytes: float = 8.0
    value_bytes: float = 4.0
    memory_access: float | None = None
    leak: bool = True
    bias: bool = True

    def __post_init__(self) -> None:
        figures = {
            "add": self.add,
            "multiply": self.multiply,
            "access_bytes": self.access_bytes,
            "value_bytes": self.value_bytes,
        }
        if self.memory_access is not None:
            figures["memory_access"] = self.memory_access
        for name, figure in figures.items():
            if isinstance(figure, bool) or not isinstance(figure, Real):
                raise EnergyError(f"MemoryModel: {name} must be a number; got {figure!r}.")
            if not (math.isfinite(figure) and figure > 0):
                raise EnergyError(f"MemoryModel: {name} must be finite and positive; got {figure}.")
        for buffer in (self.weight_buffer, self.potential_buffer, self.event_buffer):
            access_energy(buffer)

    @classmethod
    def on(cls, profile: ProfileLike, **arguments: Any) -> MemoryModel:
        """The model on hardware whose profile says what a byte costs, whatever its buffer.

        Args:
            profile: a profile, its name or its fields, with `memory_access`. Nothing else is taken
                from it: its ACs and MACs may hold memory accesses already.
            arguments: as of the class, the buffers excepted.

        Raises:
            EnergyError: a profile without the figure, or arguments that are none.

        >>> chip = {"name": "chip", "source": "a bench", "basis": "measured", "ac": 1e-12}
        >>> MemoryModel.on({**chip, "memory_access": 2e-12}).memory_access
        2e-12
        """
        known = resolve_profile(profile)
        if known.memory_access is None:
            raise EnergyError(
                f"Hardware profile {known.name!r} has no memory_access, J per byte. Give the sizes "
                "of its buffers: MemoryModel(weight_buffer=..., potential_buffer=..., "
                "event_buffer=...)."
            )
        # Any size that has a figure: with a price per byte none is used.
        buffers: dict[str, Any] = dict.fromkeys(
            ("weight_buffer", "potential_buffer", "event_buffer"), KIB
        )
        known_arguments = {field.name for field in fields(cls)} - {*buffers, "memory_access"}
        for name in arguments:
            if name not in known_arguments:
                raise EnergyError(
                    f"MemoryModel.on takes no {name!r}; the profile's price of a byte stands for "
                    f"every buffer. {known_names(name, known_arguments)}"
                )
        return cls(**buffers, memory_access=known.memory_access, **arguments)

    @property
    def source(self) -> str:
        """Where the model and its figures are from."""
        return (
            "Lemaire et al., ICONIP 2022 (arXiv 2210.13107); additions, multiplications and SRAM "
            "accesses of Horowitz, ISSCC 2014"
        )

    def joules(self, budget: EnergyBudget) -> dict[str, float]:
        """J per sample by term: ``operations``, ``addresses``, and memory by buffer.

        Layers that a budget could not count are left out here, too.
        """
        steps = float(budget.samples.sum()) / budget.n_samples
        terms = dict.fromkeys(("operations", "addresses", "weights", "potentials", "events"), 0.0)
        for layer in budget.counts:
            for term, joules in self._layer(layer, budget.n_samples, steps).items():
                terms[term] += joules
        return terms

    def __call__(self, budget: EnergyBudget) -> float:
        """J per sample: the sum of all terms."""
        return sum(self.joules(budget).values())

    def _layer(self, layer: LayerCounts, n_samples: int, steps: float) -> dict[str, float]:
        def per_sample(name: Series) -> float:
            counts = layer.series.get(name)
            return 0.0 if counts is None else float(counts.sum()) / n_samples

        mac = self.add + self.multiply
        operations = addresses = weights = potentials = events = 0.0
        convolution = "Conv" in layer.kind
        if "synops" in layer.series and layer.carries_spikes:
            synops, received = per_sample("synops"), per_sample("events")
            operations += synops * self.add
            addresses += synops * self.add + (2 * received * mac if convolution else 0.0)
            weights += synops
            potentials += 2 * synops
            events += received
        elif "synops" in layer.series:
            dense = per_sample("synops_dense")
            inputs, outputs = steps * layer.inputs, steps * layer.outputs
            operations += dense * mac
            addresses += (inputs + outputs if convolution else dense) * self.add
            weights += dense
            events += (dense if convolution else inputs) + outputs
        updates, spikes = per_sample("neuron_updates"), per_sample("spikes")
        operations += updates * (self.add * self.bias + mac * self.leak) + spikes * self.add
        weights += updates * self.bias
        potentials += 2 * updates
        events += spikes
        return {
            "operations": operations,
            "addresses": addresses,
            "weights": weights * self._access(self.weight_buffer),
            "potentials": potentials * self._access(self.potential_buffer),
            "events": events * self._access(self.event_buffer),
        }

    def _access(self, buffer: float) -> float:
        """J to read or write one value."""
        if self.memory_access is not None:
            return self.memory_access * self.value_bytes
        return access_energy(buffer) / self.access_bytes * self.value_bytes
