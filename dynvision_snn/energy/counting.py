"""Synaptic operations of presynaptic values, by one dot product with a fan-out.

`tally` reduces a tensor over its batch, once; `synops` weighs the result by a fan-out. A tally
may serve several readers: a neuron layer's spikes and the next layer's synaptic operations are
counted from the same one.

Speed decides the form. Where numba is installed, float32 values on a CPU are read in one pass
(`one_pass`). Elsewhere a few reductions of torch find the same: float operations (`sign`,
`threshold`) instead of boolean ones, which are several times slower on CPUs; and less to do where a
CPU can tell that all nonzero values have one magnitude. Counts are exact. Magnitudes are summed
over the batch in float32, or in float64 where the values are; where a CPU can tell that a timestep
has one magnitude, its sums are exact products.
No function waits for a device, and none keeps its argument or a graph.

NaN values make `least`, `most` and weighted sums NaN, and infinite ones make `most` infinite, so
that a budget can refuse them; in counts alone a NaN does not show.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynvision_snn.errors import EnergyError

_FLOAT32_EXACT = 2**24
"""Largest integer up to which float32 holds every integer."""

_WORTH_LOADING = 2**14
"""Values at once from which on it pays to load the compiler, which takes about half a second."""


class Tally(NamedTuple):
    """Presynaptic values ``[T, B, *units]``, summed over their batch; units flattened.

    Attributes:
        nonzero: nonzero values per unit, float64 ``[T, units]``.
        magnitude: sum of ``|x|`` per unit, ``[T, units]``; `nonzero` itself where all nonzero
            values are known to be of magnitude 1.
        seen: `events`, `least` and `most`, float64 ``[3, T]``.
    """

    nonzero: Tensor
    magnitude: Tensor
    seen: Tensor

    @property
    def events(self) -> Tensor:
        """Nonzero values of all units, ``[T]``."""
        return self.seen[0]

    @property
    def least(self) -> Tensor:
        """Smallest nonzero ``|x|``, ``[T]``; infinity where all are zero."""
        return self.seen[1]

    @property
    def most(self) -> Tensor:
        """Largest ``|x|``, ``[T]``."""
        return self.seen[2]


def tally(values: Tensor) -> Tally:
    """Counts nonzero values and sums magnitudes over the batch.

    Args:
        values: ``[T, B, *units]``, of any real type.

    Raises:
        EnergyError: no time and batch axes, or nothing in them.

    >>> spikes = torch.tensor([[[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]]])
    >>> tally(spikes).nonzero
    tensor([[2., 0., 1.]], dtype=torch.float64)
    """
    if values.ndim < 2 or values.numel() == 0:
        raise EnergyError(
            "Counting needs [T, B, *units] with at least one value; got shape "
            f"{list(values.shape)}."
        )
    exact = _float(values)
    compiled = _compiled_for(exact)
    return in_several_passes(exact) if compiled is None else in_one_pass(exact, compiled.count)


def in_several_passes(values: Tensor) -> Tally:
    """`tally` of float32 or wider values by reductions of torch, on any device."""
    rest = tuple(range(1, values.ndim))
    # What a CPU has computed can be read at no cost; another device would be waited for.
    readable = values.device.type == "cpu"
    is_size = readable and all(least >= 0 for least in values.amin(rest).tolist())
    size = values if is_size else values.abs()
    most = size.amax(rest)
    least = torch.threshold(size, 0.0, float("inf")).amin(rest)
    largest = most.tolist() if readable else []
    alike = readable and all(
        high in (0.0, low) for low, high in zip(least.tolist(), largest, strict=True)
    )
    all_ones = alike and all(high in (0.0, 1.0) for high in largest)
    counted = size if all_ones else size.sign()
    nonzero = _over_batch(counted).double()
    magnitude = nonzero
    if not all_ones:
        magnitude = nonzero * most[:, None] if alike else _over_batch(size)
    return Tally(nonzero, magnitude, torch.stack([nonzero.sum(1), least.double(), most.double()]))


def in_one_pass(values: Tensor, count: Callable[[Tensor], tuple[Tensor, Tensor, int]]) -> Tally:
    """`tally` of float32 values on the CPU, by the compiled `count`."""
    nonzero, seen, various = count(values)
    magnitude = nonzero
    if various:
        magnitude = nonzero * seen[2, :, None] if various == 1 else _over_batch(values.abs())
    return Tally(nonzero, magnitude, seen)


def _compiled_for(values: Tensor) -> Any:
    """What counts such values in one pass, where numba is installed and worth its loading."""
    if values.dtype is not torch.float32 or values.device.type != "cpu":
        return None
    if type(values) is not Tensor or not values.is_contiguous():
        return None
    if values.numel() < _WORTH_LOADING and "numba" not in sys.modules:
        return None
    return _loaded()


@cache
def _loaded() -> Any:
    return None if find_spec("numba") is None else import_module("dynvision_snn.energy.one_pass")


def synops(values: Tally, fan_out: Tensor) -> tuple[Tensor, Tensor]:
    """Synaptic operations and their ``|x|``-weighted sum, over the whole batch.

    ``sum over samples and units of 1[x != 0] * fan_out``, and the same with ``|x|``.

    Args:
        values: the tally of what the synapses received.
        fan_out: `synapses.fan_out` of one sample, ``[*units]``, float64.

    Returns:
        Two float64 tensors, ``[T]``. The first is of exact integers up to 2**53.

    Raises:
        EnergyError: the tally and the fan-out are of different numbers of units.

    >>> synops(tally(torch.ones(1, 4, 3)), torch.full((3,), 5.0, dtype=torch.float64))[0]
    tensor([60.], dtype=torch.float64)
    """
    nonzero, magnitude, _ = values
    weights = fan_out.flatten()
    if nonzero.shape[1] != weights.shape[0]:
        raise EnergyError(
            f"The values have {nonzero.shape[1]} units per sample, the fan-out is of "
            f"{list(fan_out.shape)}. Compute the fan-out for the shape of one sample."
        )
    counted = nonzero.mv(weights)
    return counted, counted if magnitude is nonzero else magnitude.double().mv(weights)


def synops_per_sample(values: Tensor, fan_out: Tensor) -> Tensor:
    """Synaptic operations of each sample of ``[T, B, *units]``: float64 ``[T, B]``.

    Needs a float64 copy of the values, so it costs more than `synops`. A NaN does not show: ask
    `tally` for its evidence.

    Raises:
        EnergyError: values and fan-out are of different units.

    >>> x = torch.tensor([[[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]]])
    >>> synops_per_sample(x, torch.tensor([2.0, 2.0, 3.0], dtype=torch.float64))
    tensor([[5., 0.]], dtype=torch.float64)
    """
    _check_units(values.shape[2:], fan_out)
    nonzero = _float(values).abs().sign_().to(torch.float64)
    return nonzero.reshape(*values.shape[:2], -1) @ fan_out.flatten()


def weighted_per_sample(values: Tensor, fan_out: Tensor) -> Tensor:
    """The ``|x|``-weighted operations of each sample, as `synops_per_sample`.

    >>> x = torch.tensor([[[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]]])
    >>> weighted_per_sample(x, torch.tensor([2.0, 2.0, 3.0], dtype=torch.float64))
    tensor([[8., 0.]], dtype=torch.float64)
    """
    _check_units(values.shape[2:], fan_out)
    size = _float(values).abs().to(torch.float64)
    return size.reshape(*values.shape[:2], -1) @ fan_out.flatten()


def nonzero_per_sample(values: Tensor) -> Tensor:
    """Nonzero values of each sample of ``[T, B, *units]``: float64 ``[T, B]``.

    >>> nonzero_per_sample(torch.tensor([[[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]]]))
    tensor([[2., 0.]], dtype=torch.float64)
    """
    nonzero = _float(values).abs().sign_()
    return nonzero.reshape(*values.shape[:2], -1).sum(-1, dtype=torch.float64)


def ones_per_sample(parts: Sequence[Tensor]) -> Tensor | None:
    """How many ones each sample holds, float64 ``[B]``; None where that could not be told quickly.

    It can where all values are 0 or 1, float32, on a CPU, and numba is installed. Channels may be
    last in memory.

    Args:
        parts: ``[T, B, *units]`` each; added up.
    """
    laid_out = [_as_in_memory(part.detach()) for part in parts]
    compiled = [_compiled_for(part) for part in laid_out]
    return None if None in compiled else compiled[0].ones(laid_out)


def _as_in_memory(values: Tensor) -> Tensor:
    return values if values.ndim < 4 or values.is_contiguous() else values.movedim(2, -1)


def _over_batch(values: Tensor) -> Tensor:
    """Sums ``[T, B, *units]`` over the batch: ``[T, units]``."""
    wide = torch.float64 if values.shape[1] > _FLOAT32_EXACT else values.dtype
    return values.sum(1, dtype=wide).reshape(len(values), -1)


def _float(values: Tensor) -> Tensor:
    """At least float32: half-precision sums would round; wide integers need float64."""
    if values.requires_grad:
        values = values.detach()
    if values.dtype is torch.float32:
        return values
    if values.is_floating_point():
        return values.float() if values.element_size() < 4 else values
    return values.to(torch.float64 if values.element_size() > 2 else torch.float32)


def _check_units(received: torch.Size, fan_out: Tensor) -> None:
    if received != fan_out.shape:
        raise EnergyError(
            f"The values have {list(received)} units per sample, the fan-out is of "
            f"{list(fan_out.shape)}. Compute the fan-out for the shape of one sample."
        )
