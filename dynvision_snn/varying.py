"""Presentations that vary, drawn for each batch or sample from a generator and nothing else.

Nothing is remembered between draws, so that a resumed run, and every process of a distributed one,
draws the same presentations as an unbroken run in one process.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from dynvision_snn.errors import PresentationWarning
from dynvision_snn.presentation import Presentation
from dynvision_snn.presentation_batch import (
    AnyPresentation,
    PresentationBatch,
    time_range,
    uniform_time,
)
from dynvision_snn.schedule import stretches
from dynvision_snn.timing import check_time, nearest_steps

__all__ = ["VaryingPresentation", "draw_generator"]


def draw_generator(*numbers: int) -> torch.Generator:
    """A generator that depends on all of `numbers` and on nothing else.

    Neighbouring numbers give unrelated streams (`numpy.random.SeedSequence`).

    >>> draw_generator(0, 1, 2).initial_seed() == draw_generator(0, 1, 2).initial_seed()
    True
    >>> draw_generator(0, 1, 2).initial_seed() == draw_generator(0, 2, 1).initial_seed()
    False
    """
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


@dataclass(frozen=True, kw_only=True)
class VaryingPresentation:
    """A presentation that is drawn anew for each batch, or for each of its samples.

    It goes wherever presentations are drawn: called with the number of samples and a generator, it
    gives one for all of them, or one for each. What may vary is drawn independently, from uniform
    distributions, in this order: the order of the entries, the duration, the onsets, the reaction
    time.

    Attributes:
        base: the presentation that the draws vary.
        shuffle: whether its pattern entries, or named phases, come in a random order.
        duration: shortest and longest length of the whole in ms, to which entries and phases are
            stretched in proportion; None leaves it.
        onset_jitter: each onset is late by up to this many ms, during which null input is shown;
            the presentation lasts longer by as much.
        reaction_time: shortest and longest reaction time in ms; None leaves it.
        by_sample: whether each sample of a batch has a draw of its own.

    Raises:
        PresentationError: for a range that is none, or a duration so short that an entry, or a
            phase, would have no timestep.
        TimingError: for a time that is negative or not finite.

    >>> varying = VaryingPresentation(
    ...     base=Presentation("0110", dt=2.0), duration=(8.0, 40.0), onset_jitter=6.0)
    >>> varying.at(seed=0, epoch=3, batch=5) == varying.at(seed=0, epoch=3, batch=5)
    True
    >>> len({varying.at(0, 0, batch).duration for batch in range(20)}) > 5
    True
    """

    base: Presentation
    shuffle: bool = False
    duration: Sequence[float] | None = None
    onset_jitter: float = 0.0
    reaction_time: Sequence[float] | None = None
    by_sample: bool = False

    def __post_init__(self) -> None:
        for name in ("duration", "reaction_time"):
            limits = getattr(self, name)
            if limits is not None:
                object.__setattr__(self, name, time_range(limits, name))
        check_time(self.onset_jitter, "onset_jitter")
        if self.duration is not None:
            _lasting(self.base, self.duration[0])

    @property
    def varies(self) -> bool:
        """Whether any two draws can differ."""
        ranges = [r for r in (self.duration, self.reaction_time) if r is not None]
        return self.shuffle or self.onset_jitter > 0 or any(low < high for low, high in ranges)

    def __call__(self, n_samples: int, generator: torch.Generator) -> AnyPresentation:
        """One draw for all samples of a batch; with `by_sample` one for each, in their order.

        Args:
            n_samples: B.
            generator: source of the draws.

        >>> varying = VaryingPresentation(
        ...     base=Presentation("011", dt=1.0), onset_jitter=5.0, by_sample=True)
        >>> len(varying(4, draw_generator(0, 0, 0)))
        4
        """
        if not self.by_sample:
            return self._drawn(generator)
        return PresentationBatch(self._drawn(generator) for _ in range(n_samples))

    def at(self, seed: int, epoch: int, batch: int, n_samples: int = 1) -> AnyPresentation:
        """What one batch of a training is shown by.

        Args:
            seed: of the training.
            epoch: from 0 up.
            batch: within the epoch, from 0 up.
            n_samples: of the batch, over all processes; only `by_sample` looks at it.
        """
        return self(n_samples, draw_generator(seed, epoch, batch))

    def _drawn(self, generator: torch.Generator) -> Presentation:
        with warnings.catch_warnings():
            # Of many draws some leave a stimulus unsupervised; `monitor.signs` says so if all do.
            warnings.simplefilter("ignore", PresentationWarning)
            return self._varied(generator)

    def _varied(self, generator: torch.Generator) -> Presentation:
        drawn = self.base
        if self.shuffle:
            drawn = drawn.shuffled(generator)
        if self.duration is not None:
            drawn = _lasting(drawn, uniform_time(self.duration, generator))
        if self.onset_jitter:
            drawn = _late(drawn, self.onset_jitter, generator)
        if self.reaction_time is not None:
            drawn = replace(drawn, reaction_time=uniform_time(self.reaction_time, generator))
        return drawn


def _lasting(presentation: Presentation, duration: float) -> Presentation:
    """The presentation stretched to another length in ms, in proportion."""
    if presentation.phases is None:
        steps = nearest_steps(duration, presentation.dt, "duration")
        return replace(presentation, n_timesteps=steps)
    factor = duration / sum(phase.duration for phase in presentation.phases)
    phases = [(name, length * factor, k) for name, length, k in presentation.phases]
    return _from_phases(presentation, phases)


def _late(presentation: Presentation, jitter: float, generator: torch.Generator) -> Presentation:
    """Null input of a random length before each onset, in whole timesteps."""
    most = nearest_steps(jitter, presentation.dt, "onset_jitter")
    phases: list[tuple[str, float, int]] = []
    onsets = set(presentation.onsets)
    for start, stop, stimulus in stretches(presentation.stimulus_at.tolist()):
        if start in onsets:
            late = int(torch.randint(most + 1, (), generator=generator))
            if late:
                phases.append(("jitter", late * presentation.dt, 0))
        phases.append((f"stimulus {stimulus}", (stop - start) * presentation.dt, stimulus))
    return _from_phases(presentation, phases)


def _from_phases(
    presentation: Presentation, phases: Sequence[tuple[str, float, int]]
) -> Presentation:
    return Presentation.from_phases(
        phases,
        presentation.dt,
        reaction_time=presentation.reaction_time,
        idle_time=presentation.idle_time,
        null_value=presentation.null_value,
        ignore_index=presentation.ignore_index,
    )
