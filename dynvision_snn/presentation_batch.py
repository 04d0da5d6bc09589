"""PresentationBatch: presentations of several samples that run in one batch.

Every sample has a presentation of its own; all begin with timestep 0, and the shorter ones are
followed by padding up to the common length. During padding null input is shown, and nothing is
supervised, averaged or counted: losses, meters and scores of such a batch are those of its samples
run one by one. What cannot be kept apart is a module that mixes samples: a batch normalisation in
training mode takes its statistics from padding, too.

One class with the names of `Presentation`; what they document makes the file long.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import torch
from torch import Tensor

from dynvision_snn.errors import PresentationError, PresentationWarning
from dynvision_snn.presentation import (
    Phase,
    Presentation,
    null_like,
    split_labels,
    split_stimuli,
)
from dynvision_snn.schedule import Interval, parse_integer, stretches
from dynvision_snn.timing import (
    check_dt,
    check_time,
    common_dt,
    format_ms,
    format_steps,
    nearest_steps,
)

__all__ = [
    "AnyPresentation",
    "PresentationBatch",
    "any_from_dict",
    "check_timed_inputs",
    "n_onsets",
    "onset_table",
    "time_range",
    "uniform_time",
]

Range = float | Sequence[float]
"""A time in ms, or the shortest and longest one."""


@dataclass(frozen=True, init=False, repr=False)
class PresentationBatch(Sequence[Presentation]):
    """One presentation for each sample of a batch.

    It goes wherever a `Presentation` goes, and has the same names; masks, phases and targets are
    ``[T, B]``. A slice of it is a batch of some of the samples, of the same T and stimuli.

    Args:
        presentations: one per sample, of one dt, idle time, null value and ignore_index.
        n_timesteps: T; by default that of the longest.
        n_stimuli: K; by default the largest entry of any pattern.

    Attributes:
        presentations: as a tuple.
        n_timesteps: T, padding included, without idle time.
        n_stimuli: K, how many stimuli the images must give.

    Raises:
        PresentationError: if there is none, one is something else, they differ in what they must
            share, T is shorter than the longest, or K smaller than an entry of a pattern.
        TimingError: if they differ in dt.

    >>> batch = PresentationBatch([Presentation("011", dt=2.0), Presentation("1", dt=2.0)])
    >>> batch.n_timesteps, batch.lengths.tolist(), batch.onsets
    (3, [3, 1], ((1,), (0,)))
    >>> batch.targets(torch.tensor([7, 8])).tolist()
    [[-1, 8], [7, -1], [7, -1]]
    """

    presentations: tuple[Presentation, ...]
    n_timesteps: int
    n_stimuli: int

    def __init__(
        self,
        presentations: Iterable[Presentation],
        n_timesteps: int | None = None,
        n_stimuli: int | None = None,
    ) -> None:
        given = tuple(presentations)
        if not given:
            raise PresentationError(
                "There are no presentations; expected one for each sample, at least one."
            )
        for sample, one in enumerate(given):
            if not isinstance(one, Presentation):
                raise PresentationError(
                    f"The presentation of sample {sample} is {one!r}; expected a Presentation."
                )
        common_dt(
            {f"sample {sample}": one.dt for sample, one in _first_of_each(given, "dt")},
            way_out="give all samples of a batch one dt; Presentation.at_dt changes it",
        )
        for name in ("idle_steps", "null_value", "ignore_index"):
            found = _first_of_each(given, name)
            if len(found) > 1:
                named = ", ".join(f"{getattr(one, name)} (sample {b})" for b, one in found)
                raise PresentationError(
                    f"The presentations of a batch differ in {name}: {named}. Expected one for "
                    "all samples."
                )
        longest = max(one.n_timesteps for one in given)
        length = longest if n_timesteps is None else parse_integer(n_timesteps, "n_timesteps")
        if length < longest:
            raise PresentationError(
                f"n_timesteps is {length} ({format_ms(length * given[0].dt)}), but the longest "
                f"presentation has {format_steps(longest, given[0].dt)}; expected at least as many."
            )
        shown = max(one.n_stimuli for one in given)
        stimuli = shown if n_stimuli is None else parse_integer(n_stimuli, "n_stimuli")
        if stimuli < shown:
            raise PresentationError(
                f"n_stimuli is {stimuli}, but a presentation shows stimulus {shown}; expected at "
                "least as many."
            )
        object.__setattr__(self, "presentations", given)
        object.__setattr__(self, "n_timesteps", length)
        object.__setattr__(self, "n_stimuli", stimuli)

    @classmethod
    def random(
        cls,
        n_samples: int,
        generator: torch.Generator,
        dt: float,
        *,
        onset: Range,
        shown: Range,
        length: Range | None = None,
        **shared: Any,
    ) -> PresentationBatch:
        """One stimulus per sample, with random onset, duration and length in whole timesteps.

        Each is drawn uniformly and independently, sample by sample, and rounded to the nearest
        timestep; equal generators give equal batches.

        Args:
            n_samples: B.
            generator: source of the draws.
            dt: timestep in ms.
            onset: when the stimulus begins, in ms: one time, or the earliest and the latest.
            shown: for how long it is shown, in ms, likewise.
            length: how long the whole is, in ms, likewise; by default it ends with the stimulus.
            shared: reaction_time, idle_time, null_value, ignore_index, as in `Presentation`.

        Raises:
            PresentationError: for a range that is none, a sample or a stimulus without a timestep,
                or a length that may end before the stimulus does.
            TimingError: for a time that is not legal.

        >>> generator = torch.Generator().manual_seed(0)
        >>> batch = PresentationBatch.random(
        ...     4, generator, dt=2.0, onset=(10.0, 30.0), shown=(20.0, 50.0), length=100.0)
        >>> batch.n_timesteps, all(5 <= onset <= 15 for (onset,) in batch.onsets)
        (50, True)
        """
        if parse_integer(n_samples, "n_samples") < 1:
            raise PresentationError(f"n_samples is {n_samples}; expected at least one sample.")
        check_dt(dt)
        begins, lasts = time_range(onset, "onset"), time_range(shown, "shown")
        whole = None if length is None else time_range(length, "length")
        if nearest_steps(lasts[0], dt, "shown") < 1:
            raise PresentationError(
                f"shown may be {format_ms(lasts[0])}, less than a timestep of {format_ms(dt)}; "
                "a stimulus needs one at least."
            )
        if whole is not None and whole[0] < begins[1] + lasts[1]:
            raise PresentationError(
                f"length may be {format_ms(whole[0])}, but a stimulus may end as late as "
                f"{format_ms(begins[1] + lasts[1])} (onset + shown). Let the shortest length be at "
                "least that, or leave length out to end with the stimulus."
            )
        drawn = []
        for _ in range(n_samples):
            before = nearest_steps(uniform_time(begins, generator), dt)
            steps = nearest_steps(uniform_time(lasts, generator), dt)
            end = before + steps
            if whole is not None:
                # Rounding each to the nearest may put the stimulus' end one timestep past a
                # length that is exactly its latest end.
                end = max(end, nearest_steps(uniform_time(whole, generator), dt))
            phases = [
                ("before", before, 0),
                ("shown", steps, 1),
                ("after", end - before - steps, 0),
            ]
            timed = [(name, n * dt, stimulus) for name, n, stimulus in phases if n]
            with warnings.catch_warnings():
                # Of many draws some leave a stimulus unsupervised.
                warnings.simplefilter("ignore", PresentationWarning)
                drawn.append(Presentation.from_phases(timed, dt, **shared))
        return cls(drawn)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> PresentationBatch:
        """The batch that `to_dict` described.

        Raises:
            PresentationError: if keys are unknown or missing, or a value is not legal.
        """
        if settings.keys() != {"presentations", "n_timesteps", "n_stimuli"}:
            raise PresentationError(
                "A batch of presentations has the settings 'presentations', 'n_timesteps' and "
                f"'n_stimuli'; received {sorted(settings)}."
            )
        ones = [Presentation.from_dict(one) for one in settings["presentations"]]
        return cls(ones, settings["n_timesteps"], settings["n_stimuli"])

    def to_dict(self) -> dict[str, Any]:
        """The arguments that build this batch again, of JSON's types alone."""
        return {
            "presentations": [one.to_dict() for one in self.presentations],
            "n_timesteps": self.n_timesteps,
            "n_stimuli": self.n_stimuli,
        }

    # -- samples ----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.presentations)

    @overload
    def __getitem__(self, samples: int) -> Presentation: ...
    @overload
    def __getitem__(self, samples: slice) -> PresentationBatch: ...
    def __getitem__(self, samples: int | slice) -> Presentation | PresentationBatch:
        if isinstance(samples, slice):
            some = self.presentations[samples]
            return PresentationBatch(some, self.n_timesteps, self.n_stimuli)
        return self.presentations[samples]

    def at_dt(self, dt: float) -> PresentationBatch:
        """The same schedules in ms at another timestep; see `Presentation.at_dt`.

        Padding beyond the longest sample keeps its ms, too.
        """
        ones = [one.at_dt(dt) for one in self.presentations]
        length = nearest_steps(self.duration, dt, "duration")
        longest = max(length, *(one.n_timesteps for one in ones))
        return PresentationBatch(ones, longest, self.n_stimuli)

    # -- the schedule -----------------------------------------------------------------------------

    @property
    def dt(self) -> float:
        """Length of one timestep in ms."""
        return self.presentations[0].dt

    @property
    def duration(self) -> float:
        """Length in ms, padding included, without idle time."""
        return self.n_timesteps * self.dt

    @property
    def idle_time(self) -> float:
        """Length in ms of null input before the presentations."""
        return self.presentations[0].idle_time

    @property
    def idle_steps(self) -> int:
        """Timesteps of null input before the presentations."""
        return self.presentations[0].idle_steps

    @property
    def null_value(self) -> float:
        """The constant that null input, and padding, consist of."""
        return self.presentations[0].null_value

    @property
    def ignore_index(self) -> int:
        """The target of timesteps that are not supervised."""
        return self.presentations[0].ignore_index

    @property
    def lengths(self) -> Tensor:
        """Timesteps of each sample, without padding: int64 ``[B]``."""
        return torch.tensor([one.n_timesteps for one in self.presentations], device="cpu")

    @property
    def onsets(self) -> tuple[tuple[int, ...], ...]:
        """Of each sample the timesteps that show another stimulus than the one before did."""
        return tuple(one.onsets for one in self.presentations)

    @property
    def stimulus_at(self) -> Tensor:
        """Index of the stimulus shown, 0 for null input and padding: int64 ``[T, B]``."""
        return self._stimulus_at.clone()

    @property
    def phase_codes(self) -> Tensor:
        """The `Phase` of each timestep and sample: int8 ``[T, B]``, never ``IDLE``."""
        return self._phase_codes.clone()

    @property
    def active_mask(self) -> Tensor:
        """Timesteps that are no padding: bool ``[T, B]``."""
        return self._phase_codes != Phase.PADDING

    @property
    def stimulus_mask(self) -> Tensor:
        """Timesteps that show a stimulus: bool ``[T, B]``."""
        return self._stimulus_at > 0

    @property
    def reaction_mask(self) -> Tensor:
        """Timesteps inside a reaction window: bool ``[T, B]``."""
        return self._phase_codes == Phase.REACTION

    @property
    def supervised_mask(self) -> Tensor:
        """Timesteps that show a stimulus outside every reaction window: bool ``[T, B]``."""
        return self._phase_codes == Phase.SUPERVISED

    def stimulus_between(self, start: int, stop: int) -> Tensor:
        """`stimulus_at` of the timesteps ``start`` to ``stop``, without making the others."""
        if (start, stop) == (0, self.n_timesteps):
            return self.stimulus_at
        columns = {one: one.stimulus_between(start, stop) for one in self._different}
        return self._table(columns, stop - start, 0)

    def phases_between(self, start: int, stop: int) -> Tensor:
        """`phase_codes` of the timesteps ``start`` to ``stop``, without making the others."""
        if (start, stop) == (0, self.n_timesteps):
            return self.phase_codes
        columns = {one: one.phases_between(start, stop) for one in self._different}
        return self._table(columns, stop - start, Phase.PADDING)

    def asked_between(self, start: int, stop: int) -> Tensor:
        """Which stimulus an answer is about, 0 during padding: int64 ``[t, B]``."""
        columns = {one: one.asked_between(start, stop) for one in self._different}
        return self._table(columns, stop - start, 0)

    @cached_property
    def _stimulus_at(self) -> Tensor:
        columns = {one: one.stimulus_at for one in self._different}
        return self._table(columns, self.n_timesteps, 0)

    @cached_property
    def _phase_codes(self) -> Tensor:
        columns = {one: one.phase_codes for one in self._different}
        return self._table(columns, self.n_timesteps, Phase.PADDING)

    @cached_property
    def _different(self) -> dict[Presentation, Tensor]:
        """The samples that have each of the presentations."""
        samples: dict[Presentation, list[int]] = {}
        for sample, one in enumerate(self.presentations):
            samples.setdefault(one, []).append(sample)
        with torch.inference_mode(False):
            return {one: torch.tensor(those, device="cpu") for one, those in samples.items()}

    def _table(
        self, columns: Mapping[Presentation, Tensor], n_timesteps: int, padding: int
    ) -> Tensor:
        # As in a Presentation: autograd could not save what is made in inference mode.
        with torch.inference_mode(False):
            dtype = next(iter(columns.values())).dtype
            table = torch.full((n_timesteps, len(self)), padding, dtype=dtype, device="cpu")
            for one, samples in self._different.items():
                column = columns[one]
                table[: len(column), samples] = column[:, None]
            return table

    # -- inputs and targets -----------------------------------------------------------------------

    def null_input(self, images: Tensor) -> Tensor:
        """One timestep of null input for a batch; see `Presentation.null_input`."""
        return null_like(self._split(images)[0], self.null_value)

    def inputs_at(self, images: Tensor) -> Iterator[Tensor]:
        """What is shown at each timestep, without building the whole.

        Args:
            images: ``[B, *features]``; ``[K, B, *features]`` for K > 1 stimuli.

        Returns:
            An iterator over T tensors ``[B, *features]``: the same object while nothing changes.
            They are not copies: do not write to them.

        Raises:
            PresentationError: if the images do not fit (at once, not at the first timestep).
        """
        return self.inputs_between(images, 0, self.n_timesteps)

    def inputs_between(self, images: Tensor, start: int, stop: int) -> Iterator[Tensor]:
        """`inputs_at` the timesteps ``start`` to ``stop``."""
        stimuli = self._split(images)
        stimulus_at = self.stimulus_between(start, stop)
        has_null = bool((stimulus_at == 0).any())
        null = self.null_input(images) if has_null else stimuli[0]
        return self._inputs(null, stimuli, stimulus_at)

    def _inputs(
        self, null: Tensor, stimuli: Sequence[Tensor], stimulus_at: Tensor
    ) -> Iterator[Tensor]:
        on_device = stimulus_at.to(null.device, non_blocking=True)
        columns = (len(self), *(1,) * (null.ndim - 1))
        changes = (stimulus_at.diff(dim=0) != 0).any(1).tolist()
        shown = null
        for t, changed in zip(range(len(stimulus_at)), [True, *changes], strict=False):
            if changed:
                shown = null
                at = on_device[t].reshape(columns)
                for k, stimulus in enumerate(stimuli, start=1):
                    shown = torch.where(at == k, stimulus, shown)
            yield shown

    def present(self, images: Tensor) -> Tensor:
        """The inputs of the whole presentation, ``[T, B, *features]``; see `inputs_at`."""
        return torch.stack(list(self.inputs_at(images)))

    def targets(self, labels: Tensor) -> Tensor:
        """The class to answer at each timestep.

        Args:
            labels: int64 ``[B]``; ``[K, B]`` for K > 1 stimuli.

        Returns:
            int64 ``[T, B]``: the label of the stimulus shown, and ``ignore_index`` at timesteps
            that are not supervised, padding among them.

        Raises:
            PresentationError: if the labels do not fit or are not int64.
        """
        stimuli = split_labels(labels, self.n_stimuli)
        self._check_batch(labels, stimuli[0])
        index = (self._stimulus_at - 1).clamp(min=0).to(labels.device, non_blocking=True)
        unsupervised = (~self.supervised_mask).to(labels.device, non_blocking=True)
        return torch.stack(stimuli).gather(0, index).masked_fill(unsupervised, self.ignore_index)

    def _split(self, images: Tensor) -> tuple[Tensor, ...]:
        stimuli = split_stimuli(images, self.n_stimuli, "images")
        self._check_batch(images, stimuli[0])
        return stimuli

    def _check_batch(self, given: Tensor, one: Tensor) -> None:
        if len(one) != len(self):
            raise PresentationError(
                f"There are presentations for {len(self)} samples, but a tensor of shape "
                f"{list(given.shape)} has {len(one)}. Slice the presentations as the data: "
                "presentations[start:stop]."
            )

    # -- for plots and people ---------------------------------------------------------------------

    def intervals(self) -> list[Interval]:
        """Stretches during which all samples are in the same phase, in ms, idle time first.

        Where they differ there is none. See `Presentation.intervals`.
        """
        idle = [Interval(-self.idle_steps * self.dt, 0.0, Phase.IDLE)] if self.idle_steps else []
        return idle + [
            Interval(start * self.dt, stop * self.dt, Phase(code))
            for start, stop, code in stretches(_common(self._phase_codes))
            if code >= 0
        ]

    def stimulus_intervals(self) -> list[tuple[float, float, int]]:
        """When all samples are shown the stimulus of one index: start and stop in ms, index."""
        return [
            (start * self.dt, stop * self.dt, stimulus)
            for start, stop, stimulus in stretches(_common(self._stimulus_at))
            if stimulus > 0
        ]

    def describe(self) -> str:
        """The batch in one line, for tables.

        >>> PresentationBatch([Presentation("011", dt=2.0), Presentation("1", dt=2.0)]).describe()
        '2 to 6 ms (1 to 3 timesteps of 2 ms), 1 stimulus, supervised 2 to 4 ms, by sample'
        """
        steps = self.lengths.tolist()
        supervised = [one.supervised_steps for one in self.presentations]
        n = self.n_stimuli
        parts = [
            f"{_span_ms(steps, self.dt)} ({_span([str(x) for x in (min(steps), max(steps))])} "
            f"timestep{'s' if max(steps) != 1 else ''} of {format_ms(self.dt)})",
            f"{n} stimul{'us' if n == 1 else 'i'}",
            f"supervised {_span_ms(supervised, self.dt)}",
        ]
        if self.idle_time:
            parts.append(f"idle time {format_ms(self.idle_time)} before it")
        return ", ".join([*parts, "by sample"])

    def __repr__(self) -> str:
        return f"<PresentationBatch of {len(self)} samples: {self.describe()}>"


AnyPresentation = Presentation | PresentationBatch
"""One schedule for all samples of a batch, or one for each."""


def check_timed_inputs(presentation: AnyPresentation, n_timesteps: int, n_samples: int) -> None:
    """Refuses inputs over time that do not fit the presentation that goes with them.

    Raises:
        PresentationError: saying which.
    """
    if n_timesteps != presentation.n_timesteps:
        raise PresentationError(
            f"The inputs have {format_steps(n_timesteps, presentation.dt)}, the presentation has "
            f"{presentation.n_timesteps}: {presentation.describe()}. Build it with n_timesteps="
            f"{n_timesteps}; or, if the batch comes first, say time_axis=1."
        )
    if isinstance(presentation, PresentationBatch) and n_samples != len(presentation):
        raise PresentationError(
            f"There are presentations for {len(presentation)} samples, but inputs of {n_samples}."
        )


def any_from_dict(settings: Mapping[str, Any]) -> AnyPresentation:
    """The presentation, or the batch of them, that `to_dict` described."""
    if "presentations" in settings:
        return PresentationBatch.from_dict(settings)
    return Presentation.from_dict(settings)


def n_onsets(presentation: AnyPresentation) -> int:
    """The onsets of a presentation, or of the sample that has most."""
    if isinstance(presentation, Presentation):
        return len(presentation.onsets)
    return max(len(onsets) for onsets in presentation.onsets)


def onset_table(presentation: AnyPresentation, n_samples: int) -> Tensor:
    """The timestep of each onset of each sample: int64 ``[onsets, B]``, -1 where it has fewer.

    >>> onset_table(PresentationBatch([Presentation("0101", 1.0), Presentation("1", 1.0)]), 2)
    tensor([[ 1,  0],
            [ 3, -1]])
    """
    if isinstance(presentation, Presentation):
        onsets = torch.tensor(presentation.onsets, dtype=torch.int64, device="cpu")
        return onsets[:, None].expand(-1, n_samples)
    table = torch.full((n_onsets(presentation), n_samples), -1, device="cpu")
    for sample, own in enumerate(presentation.onsets):
        table[: len(own), sample] = torch.tensor(own, dtype=torch.int64)
    return table


def time_range(limits: Range, name: str) -> tuple[float, float]:
    """The shortest and longest time of a range in ms; one time alone is both.

    Raises:
        PresentationError: if it is no such pair, or the longest comes first.
        TimingError: for a time that is negative or not finite.

    >>> time_range(5.0, "onset"), time_range([5.0, 9.0], "onset")
    ((5.0, 5.0), (5.0, 9.0))
    """
    pair = tuple(limits) if isinstance(limits, Sequence) else (limits, limits)
    if len(pair) != 2:
        raise PresentationError(
            f"{name}={limits!r}; expected two times in ms, [shortest, longest]."
        )
    low, high = (check_time(limit, name) for limit in pair)
    if low > high:
        raise PresentationError(f"{name}={limits!r}; expected the shortest first.")
    return low, high


def uniform_time(limits: Sequence[float], generator: torch.Generator) -> float:
    """A time in ms between two limits, uniformly distributed."""
    low, high = limits
    drawn = torch.rand((), generator=generator, dtype=torch.float64, device=generator.device)
    return low + (high - low) * float(drawn)


def _first_of_each(given: Sequence[Presentation], name: str) -> list[tuple[int, Presentation]]:
    """Of each value of an attribute the first sample that has it."""
    found: dict[Any, tuple[int, Presentation]] = {}
    for sample, one in enumerate(given):
        found.setdefault(getattr(one, name), (sample, one))
    return list(found.values())


def _common(table: Tensor) -> list[int]:
    """What all samples share at each timestep; -1 where they differ."""
    same = (table == table[:, :1]).all(1)
    common: list[int] = torch.where(same, table[:, 0].long(), -1).tolist()
    return common


def _span_ms(steps: Sequence[int], dt: float) -> str:
    least, most = (format_ms(count * dt) for count in (min(steps), max(steps)))
    return most if least == most else f"{least.removesuffix(' ms')} to {most}"


def _span(texts: Sequence[str]) -> str:
    return " to ".join(dict.fromkeys(texts))
