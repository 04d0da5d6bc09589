"""When an answer is good enough to act on: causal rules, and the time they take.

A rule looks at no later timestep than the one it decides at, unlike the settling time, which is
known only in hindsight. So it can be followed through a run that is taken piece by piece
(`DecisionRule.following`). From each onset on, the first timestep at which the rule is met decides;
what the readout does after that does not matter. A sample that meets it at no timestep before the
next onset never decides: its time is NaN, and counts in `Decisions.never`, not in any mean.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dynvision_snn.errors import ReadoutError
from dynvision_snn.evidence import began_at, check_onsets, gathering_of
from dynvision_snn.readout import UNDECIDED, decode
from dynvision_snn.timing import check_dt

__all__ = [
    "DecisionRule",
    "Decisions",
    "FirstSpike",
    "Following",
    "MembraneMargin",
    "SoftmaxConfidence",
    "SpikesAhead",
    "decide",
]


Following = Callable[[Tensor, Tensor | None, Tensor], Tensor]
"""A rule over one run, taken piece by piece, each once and in order. It is given membranes and
spikes ``[t, B, classes]`` (None for a readout that does not spike) and the timesteps at which what
is gathered begins anew, bool ``[t]`` or ``[t, B]``; and returns the class at every timestep at
which the rule is met, int64 ``[t, B]``, `UNDECIDED` at others."""


class DecisionRule(ABC):
    """A causal rule: the class that is decided for at a timestep, if any.

    A rule of one's own says in `following` how it takes a run. One that looks at each timestep by
    itself returns a plain function; one that gathers something, a function that remembers it.
    """

    @abstractmethod
    def following(self) -> Following:
        """The rule over one run, from its beginning; see `Following`."""

    def decided(self, membrane: Tensor, spikes: Tensor | None, onsets: Sequence[int]) -> Tensor:
        """The class at every timestep of a whole run at which the rule is met.

        Args:
            membrane: ``[T, B, classes]``.
            spikes: ``[T, B, classes]``; None where the readout does not spike.
            onsets: timesteps at which what is gathered begins anew, ascending.

        Returns:
            int64 ``[T, B]``; `UNDECIDED` where the rule is not met.

        Raises:
            ReadoutError: if the rule needs spikes and there are none.
        """
        began = began_at(onsets, len(membrane), membrane.device)
        return self.following()(membrane, spikes, began)


@dataclass(frozen=True)
class MembraneMargin(DecisionRule):
    """The highest membrane is at least `margin` above the second highest.

    Attributes:
        margin: in units of the membrane, above 0.

    Raises:
        ReadoutError: if `margin` is not a finite number above 0.
    """

    margin: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.margin) and self.margin > 0):
            raise ReadoutError(f"margin is {self.margin!r}; expected a finite number above 0.")

    def following(self) -> Following:
        """Decides at every timestep at which the margin is reached."""
        return lambda membrane, spikes, began: _where(
            _lead(membrane) >= self.margin, decode(membrane)
        )


@dataclass(frozen=True)
class SoftmaxConfidence(DecisionRule):
    """The softmax of the membranes gives one class at least `confidence`.

    Attributes:
        confidence: above 0 and below 1.

    Raises:
        ReadoutError: if `confidence` is not such a number.
    """

    confidence: float

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ReadoutError(
                f"confidence is {self.confidence!r}; expected a probability above 0 and below 1."
            )

    def following(self) -> Following:
        """Decides at every timestep at which the confidence is reached."""
        return lambda membrane, spikes, began: _where(
            membrane.softmax(dim=-1).amax(dim=-1) >= self.confidence, decode(membrane)
        )


@dataclass(frozen=True)
class FirstSpike(DecisionRule):
    """The class that spikes first.

    Of several that spike first in the same timestep, the one that is the first to have spiked more
    often than the others of them.
    """

    def following(self) -> Following:
        """Decides at every timestep from the first spike on."""
        first, counted = gathering_of("first_spike"), gathering_of("spike_count")

        def decided(membrane: Tensor, spikes: Tensor | None, began: Tensor) -> Tensor:
            needed = _needed(spikes, self)
            since = first(membrane, needed, began)
            earliest = since.amax(dim=-1, keepdim=True)
            among = (since == earliest) & (earliest > 0)
            counts = counted(membrane, needed, began) * among
            return _where(_lead(counts) >= 1, decode(counts))

        return decided


@dataclass(frozen=True)
class SpikesAhead(DecisionRule):
    """One class has at least `n` spikes more than every other since the onset.

    Attributes:
        n: number of spikes, at least 1.

    Raises:
        ReadoutError: if `n` is not such a number.
    """

    n: int

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 1:
            raise ReadoutError(f"n is {self.n!r}; expected a whole number of at least 1.")

    def following(self) -> Following:
        """Decides at every timestep at which a class is that far ahead."""
        counted = gathering_of("spike_count")

        def decided(membrane: Tensor, spikes: Tensor | None, began: Tensor) -> Tensor:
            counts = counted(membrane, _needed(spikes, self), began)
            return _where(_lead(counts) >= self.n, decode(counts))

        return decided


@dataclass(frozen=True, eq=False)
class Decisions:
    """When and for what each sample decided after each onset.

    Attributes:
        times: in ms, from the onset to the start of the deciding timestep: float64
            ``[onsets, B]``, NaN where a sample never decides.
        classes: int64 ``[onsets, B]``, `UNDECIDED` where it never does.
    """

    times: Tensor
    classes: Tensor

    @property
    def never(self) -> Tensor:
        """The fraction of samples that never decide, by onset: float64 ``[onsets]``."""
        return self.times.isnan().double().mean(dim=1)


def decide(
    rule: DecisionRule,
    membrane: Tensor,
    spikes: Tensor | None,
    onsets: Sequence[int],
    dt: float,
) -> Decisions:
    """From each onset to the first timestep at which a causal rule is met.

    Args:
        rule: when an answer is good enough.
        membrane: ``[T, B, classes]``, such as ``Recording.membrane``.
        spikes: ``[T, B, classes]``, such as ``Recording.spikes``; None where there are none.
        onsets: Timesteps at which a stimulus begins, ascending, as ``Presentation.onsets``. A
            decision falls before the next of them, or before the run ends.
        dt: Length of one timestep in ms.

    Returns:
        times and classes by onset and sample; join those of several batches along the batch axis.

    Raises:
        ReadoutError: If the shapes do not fit, an onset is outside the run, or the rule needs
            spikes and there are none.
        TimingError: If ``dt`` is not a legal dt.

    >>> membrane = torch.tensor([[[0.0, 0.1]], [[0.0, 0.6]], [[0.9, 0.6]], [[0.0, 0.1]]])
    >>> decisions = decide(MembraneMargin(0.5), membrane, None, onsets=[0, 2], dt=2.0)
    >>> decisions.times.flatten().tolist(), decisions.classes.flatten().tolist()
    ([2.0, nan], [1, -1])
    >>> decisions.never.tolist()
    [0.0, 1.0]
    """
    timestep = check_dt(dt)
    check_onsets(onsets, len(membrane), timestep)
    if spikes is not None and spikes.shape != membrane.shape:
        raise ReadoutError(
            f"The membrane has shape {list(membrane.shape)} and the spikes {list(spikes.shape)}; "
            "expected [T, B, classes] of both."
        )
    decided = rule.decided(membrane, spikes, onsets)
    times = membrane.new_full((len(onsets), membrane.shape[1]), torch.nan, dtype=torch.float64)
    classes = torch.full_like(times, UNDECIDED, dtype=torch.int64)
    for row, (start, stop) in enumerate(pairwise([*onsets, len(membrane)])):
        span = decided[start:stop]
        met = span != UNDECIDED
        first = met.long().argmax(dim=0)
        ever = met.any(dim=0)
        times[row] = torch.where(ever, timestep * first.double(), torch.nan)
        classes[row] = span.gather(0, first.unsqueeze(0)).squeeze(0)
    return Decisions(times, classes)


def _lead(values: Tensor) -> Tensor:
    """How far the highest class is ahead of the second: ``[T, B]``."""
    first, second = values.topk(2, dim=-1).values.unbind(-1)
    return first - second


def _where(met: Tensor, classes: Tensor) -> Tensor:
    return classes.masked_fill(~met, UNDECIDED)


def _needed(spikes: Tensor | None, rule: DecisionRule) -> Tensor:
    if spikes is None:
        raise ReadoutError(
            f"{type(rule).__name__} needs the readout's spikes, and it does not spike. Decide by "
            "MembraneMargin or SoftmaxConfidence, or name a spiking layer: wrap(net, readout=...)."
        )
    return spikes
