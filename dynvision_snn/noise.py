"""Noise for null input, drawn from a seeded generator.

Its parameters are in ms and Hz, so that it means the same at any timestep.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat

import torch
from torch import Tensor

from dynvision_snn.errors import EncodingError
from dynvision_snn.timing import check_time, decay_exact, ms_to_seconds

__all__ = ["GaussianNoise", "Noise", "PoissonNoise", "check_not_negative", "in_full"]


class Noise(ABC):
    """What is added to null input."""

    @abstractmethod
    def steps(
        self,
        like: Tensor,
        dt: float,
        generator: torch.Generator,
        during: Iterator[Tensor] | None = None,
    ) -> Iterator[Tensor]:
        """Noise, one tensor for each timestep of null input; endless unless it is said where.

        Args:
            like: ``[B, *features]``, whose shape, dtype and device the noise has.
            dt: length of a timestep in ms.
            generator: the source of randomness, on the device of `like`.
            during: of one timestep after the other, which samples are shown null input, bool
                ``[B]``; None where all are at each. What is yielded for others is of no use.
        """


@dataclass(frozen=True)
class GaussianNoise(Noise):
    """Normally distributed values of mean 0, correlated over a time that does not depend on dt.

    An Ornstein-Uhlenbeck process, stepped exactly: ``x[t + 1] = d x[t] + std sqrt(1 - d^2) n`` with
    ``d = exp(-dt / correlation_time)``. Its standard deviation is the same at every timestep. Over
    null input that is interrupted by a stimulus it goes on from where it was, each sample's own.

    Attributes:
        std: standard deviation, in units of the input.
        correlation_time: in ms; 0 draws every timestep anew, and then the power that the noise has
            at the frequencies which a membrane passes is proportional to dt.

    Raises:
        EncodingError: if `std` is negative or not finite.
        TimingError: if `correlation_time` is not a legal time.

    >>> noise = GaussianNoise(std=0.5, correlation_time=5.0)
    >>> generator = torch.Generator().manual_seed(0)
    >>> next(noise.steps(torch.zeros(2, 3), 1.0, generator)).shape
    torch.Size([2, 3])
    """

    std: float
    correlation_time: float = 0.0

    def __post_init__(self) -> None:
        check_not_negative(self.std, "std")
        check_time(self.correlation_time, "correlation_time")

    def steps(
        self,
        like: Tensor,
        dt: float,
        generator: torch.Generator,
        during: Iterator[Tensor] | None = None,
    ) -> Iterator[Tensor]:
        """See `Noise.steps`."""
        decay = decay_exact(float(self.correlation_time), dt)
        everywhere = torch.ones(len(like), dtype=torch.bool, device=like.device)
        columns = (-1, *(1,) * (like.ndim - 1))
        value, begun = torch.zeros_like(like), ~everywhere.reshape(columns)
        for where in repeat(everywhere) if during is None else during:
            drawn = _normal(like, generator)
            on = decay * value + self.std * math.sqrt(1 - decay**2) * drawn
            here = where.reshape(columns)
            value = torch.where(here, torch.where(begun, on, self.std * drawn), value)
            begun = begun | here
            yield value


@dataclass(frozen=True)
class PoissonNoise(Noise):
    """Spikes of every unit at a rate, independent of each other.

    Attributes:
        rate: in Hz.
        amplitude: the value of a spike.

    Raises:
        EncodingError: if `rate` is negative or either is not finite.

    >>> generator = torch.Generator().manual_seed(0)
    >>> spikes = next(PoissonNoise(rate=1000.0).steps(torch.zeros(1, 10_000), 2.0, generator))
    >>> round(spikes.mean().item(), 1)  # 1000 Hz are 2 spikes in 2 ms
    2.0
    """

    rate: float
    amplitude: float = 1.0

    def __post_init__(self) -> None:
        check_not_negative(self.rate, "rate")
        check_not_negative(abs(self.amplitude), "amplitude")

    def steps(
        self,
        like: Tensor,
        dt: float,
        generator: torch.Generator,
        during: Iterator[Tensor] | None = None,
    ) -> Iterator[Tensor]:
        """See `Noise.steps`."""
        expected = torch.full_like(in_full(like), self.rate * ms_to_seconds(dt))
        for _ in repeat(None) if during is None else during:
            yield self.amplitude * torch.poisson(expected, generator=generator).to(like.dtype)


def in_full(values: Tensor) -> Tensor:
    """`values`, in float32 where they are of half precision, which rounds rates.

    A number drawn from 0 to 1 in bfloat16 is 0 once in 256 times, however unlikely a spike is.
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)


def check_not_negative(value: float, name: str) -> None:
    """Refuses a number that is negative, NaN or infinite.

    Raises:
        EncodingError: naming it.

    >>> check_not_negative(0.0, "rate")
    """
    if isinstance(value, bool) or not (math.isfinite(value) and value >= 0):
        raise EncodingError(f"{name} is {value!r}; expected a finite number of at least 0.")
