"""Synaptic operations of presynaptic values, by one dot product with a fan-out.

`tally` reduces a tensor over its batch, once; `synops` weighs the result by a fan-out. A tally
may serve several readers: a neuron layer's spikes and the next layer's synaptic operations are
counted from the same one.

Speed decides the form: float operations (`sign`, `threshold`) instead of boolean ones, which are
several times slower on CPUs; the batch summed before anything becomes float64; and less to do where
a CPU can tell that all values are 0 and 1. Sums over the batch are exact: a unit's count is at most
the batch size, far below 2**24, or float64 beyond it.
No function waits for a device, and none keeps its argument or a graph.

NaN values make `least`, `most` and weighted sums NaN, and infinite ones make `most` infinite, so
that a budget can refuse them; in counts alone a NaN does not show.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dynvision_snn.errors import EnergyError

_FLOAT32_EXACT = 2**24
"""Largest integer up to which float32 holds every integer."""


@dataclass(frozen=True, slots=True)
class Tally:
    """One tensor of presynaptic values, summed over its batch.

    Attributes:
        nonzero: nonzero values per unit, ``[*units]``, or ``[T, *units]`` of a whole sequence.
        magnitude: sum of ``|x|`` per unit, the same shape. float32 unless the values are wider.
        least: smallest nonzero ``|x|``, ``[]`` or ``[T]``; infinity where all are zero.
        most: largest ``|x|``, ``[]`` or ``[T]``.
        events: nonzero values of all units, float64 ``[]`` or ``[T]``.
        sequence: whether the first axis is time.
    """

    nonzero: Tensor
    magnitude: Tensor
    least: Tensor
    most: Tensor
    events: Tensor
    sequence: bool = False

    @property
    def unit_shape(self) -> torch.Size:
        """Shape of one sample at one timestep."""
        return self.nonzero.shape[1:] if self.sequence else self.nonzero.shape

    def reshaped(self, unit_shape: torch.Size) -> Tally:
        """The same tally of units that a layer sees in another shape, as after a Flatten."""
        if unit_shape == self.unit_shape:
            return self
        lead = self.nonzero.shape[:1] if self.sequence else ()
        return replace(
            self,
            nonzero=self.nonzero.reshape(*lead, *unit_shape),
            magnitude=self.magnitude.reshape(*lead, *unit_shape),
        )


def tally(values: Tensor, *, sequence: bool = False) -> Tally:
    """Counts nonzero values and sums magnitudes over the batch.

    Args:
        values: ``[B, *units]``, or ``[T, B, *units]`` with `sequence`; any real type.
        sequence: whether axis 0 is time.

    Raises:
        EnergyError: no batch axis, or nothing in it.

    >>> spikes = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    >>> tally(spikes).nonzero
    tensor([2., 0., 1.])
    """
    batch_axis = 1 if sequence else 0
    if values.ndim <= batch_axis or values.numel() == 0:
        raise EnergyError(
            f"Counting needs {'[T, B, *units]' if sequence else '[B, *units]'} with at least one "
            f"value; got shape {list(values.shape)}."
        )
    exact = _float(values)
    wide = torch.float64 if values.shape[batch_axis] > _FLOAT32_EXACT else exact.dtype
    rest = tuple(range(batch_axis, exact.ndim))
    # What a CPU has computed can be read at no cost; another device would be waited for.
    readable = values.device.type == "cpu"
    size = exact if readable and bool((exact.amin(rest) >= 0).all()) else exact.abs()
    magnitude = size.sum(batch_axis, dtype=wide)
    most = size.amax(rest)
    least = torch.threshold(size, 0.0, float("inf")).amin(rest)
    if readable and bool(((most == 0) | ((least == 1) & (most == 1))).all()):
        nonzero = magnitude
    else:
        nonzero = size.sign().sum(batch_axis, dtype=wide)
    return Tally(nonzero, magnitude, least, most, _total(nonzero, sequence), sequence)


def synops(values: Tally, fan_out: Tensor) -> tuple[Tensor, Tensor]:
    """Synaptic operations and their ``|x|``-weighted sum, over the whole batch.

    ``sum over samples and units of 1[x != 0] * fan_out``, and the same with ``|x|``.

    Args:
        values: the tally of what the synapses received.
        fan_out: `synapses.fan_out` of one sample, ``[*units]``, float64.

    Returns:
        Two float64 tensors, ``[]`` or ``[T]``. The first is an exact integer up to 2**53.

    Raises:
        EnergyError: the tally and the fan-out are of different units.

    >>> synops(tally(torch.ones(4, 3)), torch.full((3,), 5.0, dtype=torch.float64))[0]
    tensor(60., dtype=torch.float64)
    """
    _check_units(values.unit_shape, fan_out)
    weights = fan_out.flatten()
    counted = _rows(values.nonzero, values.sequence) @ weights
    if values.magnitude is values.nonzero:
        return counted, counted
    return counted, _rows(values.magnitude, values.sequence) @ weights


def synops_per_sample(values: Tensor, fan_out: Tensor, *, sequence: bool = False) -> Tensor:
    """Synaptic operations of each sample: float64 ``[B]``, or ``[T, B]`` with `sequence`.

    Needs a float64 copy of the values, so it costs more than `synops`. A NaN does not show: ask
    `tally` for its evidence.

    Raises:
        EnergyError: values and fan-out are of different units.

    >>> x = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    >>> synops_per_sample(x, torch.tensor([2.0, 2.0, 3.0], dtype=torch.float64))
    tensor([5., 0.], dtype=torch.float64)
    """
    lead = 2 if sequence else 1
    _check_units(values.shape[lead:], fan_out)
    nonzero = _float(values).abs().sign_().to(torch.float64)
    return nonzero.reshape(*values.shape[:lead], -1) @ fan_out.flatten()


def weighted_per_sample(values: Tensor, fan_out: Tensor, *, sequence: bool = False) -> Tensor:
    """The ``|x|``-weighted operations of each sample, shaped as `synops_per_sample`.

    >>> x = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    >>> weighted_per_sample(x, torch.tensor([2.0, 2.0, 3.0], dtype=torch.float64))
    tensor([8., 0.], dtype=torch.float64)
    """
    lead = 2 if sequence else 1
    _check_units(values.shape[lead:], fan_out)
    size = _float(values).abs().to(torch.float64)
    return size.reshape(*values.shape[:lead], -1) @ fan_out.flatten()


def nonzero_per_sample(values: Tensor, *, sequence: bool = False) -> Tensor:
    """Nonzero values of each sample: float64 ``[B]``, or ``[T, B]`` with `sequence`.

    >>> nonzero_per_sample(torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]]))
    tensor([2., 0.], dtype=torch.float64)
    """
    lead = 2 if sequence else 1
    nonzero = _float(values).abs().sign_()
    return nonzero.reshape(*values.shape[:lead], -1).sum(-1, dtype=torch.float64)


def _rows(per_unit: Tensor, sequence: bool) -> Tensor:
    """float64 ``[units]`` or ``[T, units]``."""
    exact = per_unit.to(torch.float64)
    return exact.reshape(len(exact), -1) if sequence else exact.reshape(-1)


def _total(per_unit: Tensor, sequence: bool) -> Tensor:
    rows = per_unit.reshape(len(per_unit), -1) if sequence else per_unit
    return rows.sum(-1 if sequence else None, dtype=torch.float64)


def _float(values: Tensor) -> Tensor:
    """At least float32: half-precision sums would round; wide integers need float64."""
    values = values.detach()
    if values.is_floating_point():
        return values.float() if values.element_size() < 4 else values
    return values.to(torch.float64 if values.element_size() > 2 else torch.float32)


def _check_units(received: torch.Size, fan_out: Tensor) -> None:
    if received != fan_out.shape:
        raise EnergyError(
            f"The values have {list(received)} units per sample, the fan-out is of "
            f"{list(fan_out.shape)}. Compute the fan-out for the shape of one sample."
        )
