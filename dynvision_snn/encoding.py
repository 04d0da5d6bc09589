"""Images as inputs over time: currents, spike trains at rates in Hz, latencies in ms.

An encoding follows a `Presentation`, or a `PresentationBatch` in which each sample has its own: at
every timestep it encodes what is shown then, a stimulus or null input. Padding is encoded like null
input, without noise. Randomness comes from the generator that is passed, so that a seed gives the
same inputs; it is drawn for a whole batch at each timestep, so that random encodings of a batch are
not those of its samples alone, while those that draw nothing are. Every encoding means the same at
any timestep: a rate is a number of spikes per second, not a probability per timestep.

No library's encoder takes both milliseconds and a schedule, and snnTorch's take no generator, so
these are written here, in torch alone; tests hold them to ``norse.torch.poisson_encode`` (equal
spike for spike) and ``snntorch.spikegen``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynvision_snn.errors import EncodingError
from dynvision_snn.noise import Noise, check_not_negative, in_full
from dynvision_snn.presentation import Presentation
from dynvision_snn.presentation_batch import AnyPresentation, PresentationBatch
from dynvision_snn.timing import (
    check_time,
    containing_steps,
    format_ms,
    ms_to_seconds,
)

__all__ = [
    "BernoulliRate",
    "ConstantCurrent",
    "Encoding",
    "Latency",
    "PoissonRate",
]


@dataclass(frozen=True, kw_only=True)
class Encoding(ABC):
    """How what is shown becomes input at every timestep.

    Call it for the whole ``[T, B, *features]``, or go through `steps` to hold one timestep at a
    time.

    Attributes:
        null_noise: what is added to null input; see `noise`.
    """

    null_noise: Noise | None = None

    def __call__(
        self,
        images: Tensor,
        presentation: AnyPresentation,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The inputs of a whole presentation.

        Args:
            images: ``[B, *features]``, floating point; ``[K, B, *features]`` of K > 1 stimuli.
            presentation: what is shown when, to all samples or to each, and the timestep.
            generator: the source of randomness, on the images' device.

        Returns:
            ``[T, B, *features]``, of the images' dtype and device.

        Raises:
            EncodingError: if the images or the generator do not fit.
            PresentationError: if the images do not fit the presentation.
        """
        return torch.stack(list(self.steps(images, presentation, generator)))

    def steps(
        self,
        images: Tensor,
        presentation: AnyPresentation,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """The inputs of one timestep after the other, ``[B, *features]`` each; see `__call__`.

        What cannot be encoded is refused at once, not at the first timestep.
        """
        shown = presentation.inputs_at(images)
        _check_floating(images)
        noisy = self.null_noise is not None and any(0 in one.pattern for one in _ones(presentation))
        if noisy or self._is_random:
            generator = _check_generator(generator, images, type(self).__name__)
        encoded = self._encode(images, shown, presentation, generator)
        if self.null_noise is None or generator is None or not noisy:
            return encoded
        return _with_noise(encoded, self.null_noise, images, presentation, generator)

    @property
    def _is_random(self) -> bool:
        return True

    @abstractmethod
    def _encode(
        self,
        images: Tensor,
        shown: Iterator[Tensor],
        presentation: AnyPresentation,
        generator: torch.Generator | None,
    ) -> Iterator[Tensor]:
        """Encodes what is shown at each timestep; the arguments have been checked."""


@dataclass(frozen=True)
class ConstantCurrent(Encoding):
    """The images themselves, at every timestep at which they are shown.

    Attributes:
        amplitude: what they are multiplied with.

    >>> ConstantCurrent(2.0)(torch.ones(1, 1), Presentation("011", dt=1.0)).flatten().tolist()
    [0.0, 2.0, 2.0]
    """

    amplitude: float = 1.0

    def __post_init__(self) -> None:
        check_not_negative(abs(self.amplitude), "amplitude")

    @property
    def _is_random(self) -> bool:
        return False

    def _encode(
        self,
        images: Tensor,
        shown: Iterator[Tensor],
        presentation: AnyPresentation,
        generator: torch.Generator | None,
    ) -> Iterator[Tensor]:
        return (self.amplitude * image for image in shown)


@dataclass(frozen=True)
class PoissonRate(Encoding):
    """Spike counts of Poisson processes, whose rates are the images times `max_rate`.

    A timestep may hold several spikes of a unit: its value is their number. So the rate is exact at
    any timestep, and the output is not binary.

    Attributes:
        max_rate: rate of an intensity of 1, in Hz.

    Raises:
        EncodingError: if `max_rate` is negative or not finite; when called, if an intensity is
            negative or not finite, or without a generator.

    >>> generator = torch.Generator().manual_seed(0)
    >>> p = Presentation("1" * 200, dt=5.0)
    >>> spikes = PoissonRate(100.0)(torch.ones(1, 5000), p, generator)
    >>> round(spikes.sum(0).mean().item())  # in 1000 ms
    100
    """

    max_rate: float

    def __post_init__(self) -> None:
        check_not_negative(self.max_rate, "max_rate")

    def _encode(
        self,
        images: Tensor,
        shown: Iterator[Tensor],
        presentation: AnyPresentation,
        generator: torch.Generator | None,
    ) -> Iterator[Tensor]:
        _highest_intensity(images, presentation)
        expected = self.max_rate * ms_to_seconds(presentation.dt)

        def spikes(image: Tensor) -> Tensor:
            return torch.poisson(expected * in_full(image), generator=generator).to(image.dtype)

        return (spikes(image) for image in shown)


@dataclass(frozen=True)
class BernoulliRate(Encoding):
    """At most one spike per timestep, with the probability ``rate * dt``.

    Rates are the images times `max_rate`, and can be no higher than one spike per timestep. Well
    below that limit the spikes are those of a Poisson process.

    Attributes:
        max_rate: rate of an intensity of 1, in Hz; at most 1 / dt.

    Raises:
        EncodingError: if `max_rate` is negative or not finite; when called, if a rate is above
            1 / dt, if an intensity is negative or not finite, or without a generator.

    >>> generator = torch.Generator().manual_seed(0)
    >>> p = Presentation("1" * 500, dt=2.0)
    >>> spikes = BernoulliRate(100.0)(torch.ones(1, 5000), p, generator)
    >>> round(spikes.sum(0).mean().item())  # in 1000 ms
    100
    """

    max_rate: float

    def __post_init__(self) -> None:
        check_not_negative(self.max_rate, "max_rate")

    def _encode(
        self,
        images: Tensor,
        shown: Iterator[Tensor],
        presentation: AnyPresentation,
        generator: torch.Generator | None,
    ) -> Iterator[Tensor]:
        dt = presentation.dt
        highest = self.max_rate * max(1.0, _highest_intensity(images, presentation))
        limit = 1 / ms_to_seconds(dt)
        if highest > limit * (1 + 1e-6):
            raise EncodingError(
                f"A rate of {highest:.6g} Hz is above the limit of 1 / dt = {limit:.6g} Hz: a "
                f"timestep of {format_ms(dt)} holds at most one Bernoulli spike. Lower max_rate or "
                "the intensities, choose a smaller dt, or use PoissonRate, which counts several "
                "spikes in a timestep."
            )
        likely = self.max_rate * ms_to_seconds(dt)

        def spikes(image: Tensor) -> Tensor:
            probability = likely * in_full(image)
            drawn = torch.rand(
                image.shape, dtype=probability.dtype, device=image.device, generator=generator
            )
            return (drawn < probability).to(image.dtype)

        return (spikes(image) for image in shown)


@dataclass(frozen=True)
class Latency(Encoding):
    """One spike per unit and onset, the earlier the brighter: ``tau ln(x / (x - threshold))``.

    That is when a membrane of time constant `tau`, driven by the constant current x, reaches the
    threshold (as in ``snntorch.spikegen.latency``). Intensities up to the threshold never spike,
    nor does a unit whose time comes after its stimulus. Null input is silent.

    Attributes:
        tau: time constant in ms.
        threshold: above 0.

    Raises:
        EncodingError: if `threshold` is not a finite number above 0; when called, if an intensity
            is negative or not finite.
        TimingError: if `tau` is not a legal time.

    >>> p = Presentation("0111", dt=1.0)
    >>> Latency(tau=2.0, threshold=0.5)(torch.tensor([[1.0, 0.8, 0.5]]), p).squeeze(1).tolist()
    [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """

    tau: float
    threshold: float = 0.01

    def __post_init__(self) -> None:
        check_time(self.tau, "tau")
        check_not_negative(self.threshold, "threshold")
        if self.threshold == 0:
            raise EncodingError("threshold is 0; expected a number above 0, such as 0.01.")

    @property
    def _is_random(self) -> bool:
        return False

    def _encode(
        self,
        images: Tensor,
        shown: Iterator[Tensor],
        presentation: AnyPresentation,
        generator: torch.Generator | None,
    ) -> Iterator[Tensor]:
        _highest_intensity(images, presentation)
        return self._spikes(shown, presentation)

    def _spikes(self, shown: Iterator[Tensor], presentation: AnyPresentation) -> Iterator[Tensor]:
        stimuli = presentation.stimulus_at
        before = torch.cat([torch.zeros_like(stimuli[:1]), stimuli[:-1]])
        onsets = (stimuli > 0) & (stimuli != before)
        any_onset, any_shown = (
            flags.reshape(len(flags), -1).any(1).tolist() for flags in (onsets, stimuli > 0)
        )
        due: Tensor | None = None
        for t, image in enumerate(shown):
            if due is None:
                due = torch.full_like(image, -1, dtype=torch.int64)
                silence = torch.zeros_like(image)
            if any_onset[t]:
                due = torch.where(
                    _columns(onsets[t], image), self._due(image, presentation, t), due
                )
            if any_shown[t]:
                yield ((due == t) & _columns(stimuli[t] > 0, image)).to(image.dtype)
            else:
                yield silence

    def _due(self, image: Tensor, presentation: AnyPresentation, onset: int) -> Tensor:
        """The timestep at which each unit spikes after an onset; -1 for never."""
        image = image.double()
        fires = image > self.threshold
        # Below the threshold the logarithm is not defined; the value is not used.
        above = torch.where(fires, image, 2 * self.threshold)
        times = self.tau * torch.log(above / (above - self.threshold))
        return torch.where(fires, onset + containing_steps(times, presentation.dt), -1)


def _ones(presentation: AnyPresentation) -> Sequence[Presentation]:
    return [presentation] if isinstance(presentation, Presentation) else presentation.presentations


def _columns(flags: Tensor, like: Tensor) -> Tensor:
    """Flags of all samples ``[]``, or of each ``[B]``, to go with ``[B, *features]``."""
    flags = flags.to(like.device, non_blocking=True)
    return flags.reshape(-1, *(1,) * (like.ndim - 1))


def _with_noise(
    encoded: Iterator[Tensor],
    null_noise: Noise,
    images: Tensor,
    presentation: AnyPresentation,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """Adds noise to null input, and draws it where any sample is shown that alone."""
    like = presentation.null_input(images)
    null = presentation.stimulus_at == 0
    if isinstance(presentation, PresentationBatch):
        null &= presentation.active_mask
    else:
        null = null[:, None].expand(-1, len(like))
    noisy = null.any(1).tolist()
    on_device = null.to(like.device, non_blocking=True)
    during = (on_device[t] for t, any_null in enumerate(noisy) if any_null)
    noise = null_noise.steps(like, presentation.dt, generator, during)
    for t, inputs in enumerate(encoded):
        yield inputs + next(noise) * _columns(on_device[t], inputs) if noisy[t] else inputs


def _check_floating(images: Tensor) -> None:
    if not images.is_floating_point():
        raise EncodingError(
            f"images have dtype {images.dtype}; expected floating point, the brightest "
            "intensity 1: images.float() / 255 for bytes."
        )


def _check_generator(
    generator: torch.Generator | None, images: Tensor, name: str
) -> torch.Generator:
    where = images.device
    if generator is None:
        raise EncodingError(
            f"{name} draws random numbers and was given no generator. Pass one with a seed: "
            f"generator=torch.Generator({str(where)!r}).manual_seed(0)."
        )
    if generator.device.type != where.type or generator.device.index not in (None, where.index):
        raise EncodingError(
            f"The generator is on {generator.device} and the images on {where}; expected both on "
            f"one device: torch.Generator({str(where)!r}).manual_seed(0)."
        )
    return generator


def _highest_intensity(images: Tensor, presentation: AnyPresentation) -> float:
    """The highest intensity that can be shown; waits for the images' device once per batch.

    Raises:
        EncodingError: if one is negative or not finite.
    """
    lowest, highest = (float(value) for value in images.aminmax())
    ones = _ones(presentation)
    if any(0 in one.pattern or one.n_timesteps < presentation.n_timesteps for one in ones):
        lowest = min(lowest, presentation.null_value)
        highest = max(highest, presentation.null_value)
    if not (lowest >= 0 and math.isfinite(highest)):
        raise EncodingError(
            f"The intensities shown reach from {lowest:g} to {highest:g}; expected finite numbers "
            "of at least 0, since they stand for rates or currents."
        )
    return highest
