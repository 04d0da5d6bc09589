"""A neuron's timestep without its tensors: what a kernel must be told besides the numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynvision_snn.adapters.scan_spec import (
    After,
    Before,
    ScanSpec,
    Surrogate,
    SurrogateKind,
    Synapse,
    Update,
)

KINDS = tuple(SurrogateKind)
"""Surrogate kinds in the order of the codes that kernels are given."""

N_PARAMETERS = 6
"""How many there are of `parameters_of`."""

N_LEARNABLE = 4
"""How many of `parameters_of`, from the first, have gradients; under the Euler updates, none."""

THRESHOLD = 1
"""Which of `parameters_of` is the threshold."""

SPIKE_VALUE = 2
"""Which of `parameters_of` a spike is worth."""


def parameters_of(spec: ScanSpec) -> tuple[tuple[Tensor | None, float], ...]:
    """The parameters of a timestep in the order in which kernels take them.

    Each comes with the number that stands for it where the neuron has none.
    """
    return (
        (spec.rate, 1.0),
        (spec.threshold, 0.0),
        (spec.spike_value, 1.0),
        (spec.synapse_rate, 0.0),
        (spec.leak, 0.0),
        (spec.reset_value, 0.0),
    )


@dataclass(frozen=True, slots=True)
class Rule:
    """The words of a `ScanSpec`; hashable, so that compiled kernels can be kept by it."""

    update: Update
    synapse: Synapse
    before: Before
    after: After
    fires: bool
    detached: bool
    surrogate: Surrogate

    @classmethod
    def of(cls, spec: ScanSpec) -> Rule:
        """The words of `spec`."""
        return cls(
            spec.update,
            spec.synapse,
            spec.before,
            spec.after,
            spec.fires,
            spec.reset_detached,
            spec.surrogate or Surrogate(SurrogateKind.NONE),
        )

    @property
    def owes(self) -> bool:
        """Whether the recorded membrane differs from ``v`` by a reset that needs the one before."""
        return self.after in (After.OWED_SUBTRACT, After.OWED_ZERO)

    @property
    def kind(self) -> int:
        """The code of the surrogate's kind."""
        return KINDS.index(self.surrogate.kind)


@dataclass(frozen=True, eq=False, slots=True)
class Wanted:
    """What a forward scan writes besides its final state; each ``[T, lanes]`` or None.

    Attributes:
        spikes: the spikes.
        before: the membrane before the reset of its timestep.
        membrane: the membrane that is recorded.
        current: the synapse's current.
        emitted: to which the magnitudes of the spikes are added, ``[lanes]``; only with `spikes`.
    """

    spikes: Tensor | None = None
    before: Tensor | None = None
    membrane: Tensor | None = None
    current: Tensor | None = None
    emitted: Tensor | None = None

    def at(self, steps: slice) -> Wanted:
        """Where a part of the timesteps is written."""
        spikes, before, membrane, current = (
            None if value is None else value[steps]
            for value in (self.spikes, self.before, self.membrane, self.current)
        )
        return Wanted(spikes, before, membrane, current, self.emitted)


@dataclass(frozen=True, eq=False, slots=True)
class Given:
    """The gradients that a backward scan starts from; each ``[T, lanes]`` or None.

    That of `emitted`, ``[lanes]``, comes with the sign that a spike has.
    """

    spikes: Tensor | None = None
    membrane: Tensor | None = None
    current: Tensor | None = None
    emitted: Tensor | None = None

    def at(self, steps: slice) -> Given:
        """Those of a part of the timesteps."""
        spikes, membrane, current = (
            None if value is None else value[steps]
            for value in (self.spikes, self.membrane, self.current)
        )
        return Given(spikes, membrane, current, self.emitted)


def expanded(value: Tensor | None, default: float, shape: torch.Size, like: Tensor) -> Tensor:
    """A parameter as ``[1]`` (one number) or ``[lanes]`` (one for each of ``[B, *units]``).

    Args:
        value: the parameter; one number or of a shape that broadcasts to `shape`.
        default: what stands for a parameter that is None.
        shape: ``[B, *units]``.
        like: a tensor of the dtype and device to take.
    """
    if value is None:
        return torch.full((1,), default, dtype=like.dtype, device=like.device)
    if value.device != like.device and not value.requires_grad and value.numel() == 1:
        # A fill does not wait for the device, as a copy of a number on the CPU would.
        return torch.full((1,), float(value), dtype=like.dtype, device=like.device)
    value = value.to(like.device, like.dtype)
    if value.numel() == 1:
        return value.reshape(1)
    return value.expand(shape).reshape(-1)
