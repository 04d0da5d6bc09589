"""The forward of a recurrent neuron, in stretches of timesteps that a backward may run again.

What comes back is summed over the units that spiked where they are few, and is otherwise a dense
product for each timestep. Which of the two it is, is decided at the start of each stretch by the
spikes before it, so that a stretch that is run again from the same state, spikes and input does the
same operations in the same order: its membranes are those of the first time to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dynvision_snn.engine.scans.backends import Backend
from dynvision_snn.engine.scans.rule import Rule, Wanted

# Recurrent products, as dense ones, that make sums over spikes worth a look; the share of units up
# to whose spikes they are faster, measured for 256 and 1000 units; timesteps between two looks.
_WORTH = 1 << 22
_MOST = 0.2
_STRETCH = 16


def stretches(n_steps: int) -> list[slice]:
    """The timesteps, in parts that are run as one.

    >>> stretches(20)
    [slice(0, 16, None), slice(16, 20, None)]
    """
    return [slice(t, min(t + _STRETCH, n_steps)) for t in range(0, n_steps, _STRETCH)]


@dataclass(frozen=True, eq=False, slots=True)
class Recursion:
    """What each stretch is run with.

    Attributes:
        rule: the neuron.
        backend: who computes it.
        shape: ``[B, *units]``.
        x: its input, ``[K, lanes]``.
        index: the row of it that each timestep shows, ``[T]`` on its device.
        weight: what its spikes come back through: a matrix, or a diagonal ``[lanes]`` or ``[1]``.
        bias: what comes back on top, ``[units]``; only with a matrix.
        sends: what each unit sends back, row by row; None where it is not to be summed over spikes.
        parameters: those of the neuron, ``[lanes]`` each.
    """

    rule: Rule
    backend: Backend
    shape: torch.Size
    x: Tensor
    index: Tensor
    weight: Tensor
    bias: Tensor | None
    sends: Tensor | None
    parameters: tuple[Tensor, ...]

    @classmethod
    def of(
        cls,
        rule: Rule,
        backend: Backend,
        shape: torch.Size,
        x: Tensor,
        index: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        parameters: tuple[Tensor, ...],
    ) -> Recursion:
        """With what each unit sends back, where that may be summed."""
        n_products = shape.numel() * len(index) * len(weight)
        sums = (
            backend.forward_joined is not None
            and weight.ndim == 2
            and n_products >= _WORTH
            and weight.dtype is x.dtype
            # One that is not finite, times no spike, is NaN: sums over spikes would lose it.
            and bool(weight.sum().isfinite())
        )
        sends = weight.t().contiguous() if sums else None
        return cls(rule, backend, shape, x, index, weight, bias, sends, parameters)

    def run(self, stretch: slice, z: Tensor, u: Tensor, i: Tensor | None, wanted: Wanted) -> None:
        """Runs one stretch, changing the state `u`, `i` in place.

        Args:
            stretch: one of `stretches`.
            z: the spikes before it, ``[lanes]``.
            u: the membrane before it, ``[lanes]``.
            i: the current before it, ``[lanes]``.
            wanted: what is written of its timesteps, and of no others; the spikes are.
        """
        assert wanted.spikes is not None
        index, x, joined = self.index[stretch], self.x, self.backend.forward_joined
        if joined is not None and self.sends is not None and _are_few(z):
            bias = x.new_zeros(self.shape[-1]) if self.bias is None else self.bias.contiguous()
            joined(self.rule, index, x, z, self.sends, bias, self.parameters, u, i, wanted)
            return
        for t in range(len(index)):
            step = slice(t, t + 1)
            back = self._sent(z).view(1, -1)
            self.backend.forward(
                self.rule, index[step], x, back, self.parameters, u, i, wanted.at(step)
            )
            z = wanted.spikes[t]

    def run_again(
        self, starts: Sequence[tuple[Tensor, Tensor | None]], z0: Tensor, spikes: Tensor
    ) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Runs all stretches, the last one first, each into the same memory.

        Args:
            starts: membrane and current before each of them.
            z0: the spikes before the first.
            spikes: those of all timesteps, ``[T, lanes]``.

        Yields:
            The stretch, the membrane before it, and its membranes before the reset and as recorded:
            ``[<= 16, lanes]``, the same tensor where no reset is owed.
        """
        size = (min(_STRETCH, len(spikes)), spikes.shape[1])
        fired, before = spikes.new_empty(size), spikes.new_empty(size)
        recorded = spikes.new_empty(size) if self.rule.owes else before
        into = Wanted(fired, before, recorded if self.rule.owes else None)
        parts = list(zip(stretches(len(spikes)), starts, strict=True))
        for stretch, (u, i) in reversed(parts):
            z = spikes[stretch.start - 1] if stretch.start > 0 else z0
            steps = slice(0, stretch.stop - stretch.start)
            # Though it be on around the backward, it was off in the forward.
            with torch.autocast(spikes.device.type, enabled=False):
                self.run(stretch, z, u.clone(), None if i is None else i.clone(), into.at(steps))
            yield stretch, u, before, recorded

    def _sent(self, z: Tensor) -> Tensor:
        """What the spikes `z` of the last timestep send back, ``[B, *units]`` or ``[lanes]``."""
        if self.weight.ndim == 2:
            return F.linear(z.view(self.shape), self.weight, self.bias)
        return z * self.weight


def _are_few(z: Tensor) -> bool:
    return int(z.count_nonzero()) <= _MOST * z.numel()
