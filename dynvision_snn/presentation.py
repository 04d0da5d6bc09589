"""Presentation: which timesteps show what, when an answer counts, and what came before.

A presentation is a frozen value. It resolves a pattern (or named phases in ms) into stretches of
timesteps that show the same, and everything else follows from these: onsets, reaction windows, the
supervised timesteps, inputs and targets. What it holds does not grow with the number of timesteps;
masks are made when they are asked for, of a part of a long run where that is enough. All samples
of a batch share the schedule; where each has its own, see `presentation_batch`.

Most of the module's length is the documentation of one class, the package's first contract with
its users; the rules themselves are in `schedule`.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch

from dynvision_snn.errors import PresentationError, PresentationWarning, known_names
from dynvision_snn.schedule import (
    Interval,
    NamedPhase,
    Phase,
    Stretch,
    asked_stretches,
    check_phases,
    filled,
    merged,
    parse_integer,
    parse_length,
    parse_pattern,
    parse_phases,
    phase_boundaries,
    phase_stretches,
    shares,
    written,
)
from dynvision_snn.timing import (
    ceil_steps,
    check_dt,
    check_time,
    format_ms,
    format_steps,
    nearest_steps,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["Interval", "NamedPhase", "Phase", "Presentation"]

_NAMED_ONSETS = 10


@dataclass(frozen=True, init=False, repr=False)
class Presentation:
    """The schedule of a run: what is shown when, reaction time and idle time.

    Args:
        pattern: One entry per timestep, or per equal share of ``n_timesteps``: 0 is null input,
            ``k >= 1`` the k-th stimulus. A string of digits (``"0011"``) or a sequence of
            integers, which may pass 9.
        dt: Length of one timestep in ms.
        reaction_time: Length in ms of the window from each onset in which no answer counts;
            rounded up to timesteps.
        idle_time: Length in ms of null input before the presentation; rounded up to timesteps.
        n_timesteps: Length to which the pattern is stretched, timestep ``t`` showing
            ``pattern[t * len(pattern) // n_timesteps]``; by default one timestep per entry.
        null_value: The constant that null input consists of.
        ignore_index: The target of timesteps that are not supervised.
        phases: Named phases in ms whose boundaries replace the equal shares; see `from_phases`,
            which is the way to build them.

    Attributes:
        pattern: The entries, as a tuple of integers.
        n_timesteps: Timesteps of the presentation, without idle time.
        phases: The named phases, or None.

    Raises:
        PresentationError: If the pattern, the phases, ``n_timesteps``, ``null_value`` or
            ``ignore_index`` cannot be.
        TimingError: If a time is not a finite number, is negative, or ``dt`` is not above 0.

    Warns:
        PresentationWarning: If a stimulus is no longer than its reaction window, or if no
            timestep is supervised.

    >>> p = Presentation("0011111000", dt=2.0, reaction_time=6.0, idle_time=20.0)
    >>> p.n_timesteps, p.duration, p.onsets, p.reaction_steps, p.idle_steps
    (10, 20.0, (2,), 3, 10)
    >>> p.supervised_mask.int().tolist()
    [0, 0, 0, 0, 0, 1, 1, 0, 0, 0]
    >>> p.targets(torch.tensor([7])).flatten().tolist()
    [-1, -1, -1, -1, -1, 7, 7, -1, -1, -1]
    """

    pattern: tuple[int, ...]
    dt: float
    reaction_time: float
    idle_time: float
    n_timesteps: int
    null_value: float
    ignore_index: int
    phases: tuple[NamedPhase, ...] | None

    def __init__(
        self,
        pattern: str | Sequence[int],
        dt: float,
        *,
        reaction_time: float = 0.0,
        idle_time: float = 0.0,
        n_timesteps: int | None = None,
        null_value: float = 0.0,
        ignore_index: int = -1,
        phases: Iterable[tuple[str, float, int]] | None = None,
    ) -> None:
        entries = parse_pattern(pattern)
        named = None if phases is None else parse_phases(phases)
        timestep = check_dt(dt)
        if named is None:
            length = parse_length(n_timesteps, len(entries), timestep)
        else:
            check_phases(named, entries, timestep, n_timesteps)
            length = phase_boundaries(named, timestep)[-1]
        settled = {
            "pattern": entries,
            "dt": timestep,
            "reaction_time": check_time(reaction_time, "reaction_time"),
            "idle_time": check_time(idle_time, "idle_time"),
            "n_timesteps": length,
            "null_value": _parse_null_value(null_value),
            "ignore_index": parse_integer(ignore_index, "ignore_index"),
            "phases": named,
        }
        for name, value in settled.items():
            object.__setattr__(self, name, value)
        self._warn_of_unsupervised()

    @classmethod
    def from_phases(
        cls,
        phases: Iterable[tuple[str, float, int]],
        dt: float,
        *,
        reaction_time: float = 0.0,
        idle_time: float = 0.0,
        null_value: float = 0.0,
        ignore_index: int = -1,
    ) -> Presentation:
        """A presentation from named phases in ms.

        Boundaries are the running sums of the durations, each rounded to the nearest timestep, so
        that rounding errors do not add up. Two phases in a row that show the same stimulus show
        it without a new onset.

        Args:
            phases: Of each phase its name, duration in ms, and stimulus (0: null input).
            dt: Length of one timestep in ms.
            reaction_time: As in `Presentation`, in ms.
            idle_time: As in `Presentation`, in ms.
            null_value: As in `Presentation`.
            ignore_index: As in `Presentation`.

        Raises:
            PresentationError: If there are no phases, one is not such a triple, or one is so
                short that it is left without a timestep.
            TimingError: If a time is not legal.

        >>> p = Presentation.from_phases(
        ...     [("fixation", 100, 0), ("digit", 200, 1), ("delay", 50, 0)], dt=1.0,
        ...     reaction_time=50)
        >>> p.n_timesteps, p.onsets, int(p.supervised_mask.sum())
        (350, (100,), 150)
        """
        named = parse_phases(phases)
        return cls(
            [phase.stimulus for phase in named],
            dt,
            reaction_time=reaction_time,
            idle_time=idle_time,
            null_value=null_value,
            ignore_index=ignore_index,
            phases=named,
        )

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Presentation:
        """The presentation that `to_dict` described.

        Args:
            settings: ``dt`` and either ``pattern`` (with ``n_timesteps`` if stretched) or
                ``phases``, and any of the other arguments of `Presentation`.

        Raises:
            PresentationError: If a key is unknown or missing, or a value is not legal.
            TimingError: If a time is not legal.

        >>> Presentation.from_dict({"pattern": "0110", "dt": 2.0})
        Presentation('0110', dt=2.0)
        """
        common = {"dt", "reaction_time", "idle_time", "null_value", "ignore_index"}
        by_phases = "phases" in settings
        known = common | ({"phases"} if by_phases else {"pattern", "n_timesteps"})
        for key in settings:
            if key not in known:
                also = " beside phases" if by_phases else ""
                raise PresentationError(
                    f"A presentation has no setting {key!r}{also}. {known_names(str(key), known)}"
                )
        for key in ("phases" if by_phases else "pattern", "dt"):
            if key not in settings:
                raise PresentationError(
                    f"A presentation needs {key!r} (or 'phases' for 'pattern'); "
                    f"received only {sorted(settings)}."
                )
        return cls.from_phases(**settings) if by_phases else cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """The arguments that build this presentation again, of JSON's types alone.

        >>> Presentation("01", dt=2.0, n_timesteps=4).to_dict()
        {'pattern': '01', 'n_timesteps': 4, 'dt': 2.0, 'reaction_time': 0.0, 'idle_time': 0.0,
         'null_value': 0.0, 'ignore_index': -1}
        """
        schedule: dict[str, Any] = (
            {"pattern": written(self.pattern), "n_timesteps": self.n_timesteps}
            if self.phases is None
            else {"phases": [list(phase) for phase in self.phases]}
        )
        return schedule | {
            "dt": self.dt,
            "reaction_time": self.reaction_time,
            "idle_time": self.idle_time,
            "null_value": self.null_value,
            "ignore_index": self.ignore_index,
        }

    def shuffled(self, generator: torch.Generator) -> Presentation:
        """The same presentation with its pattern entries, or named phases, in a random order.

        Entries and phases move whole: a stretched entry keeps its share, a phase its duration.

        Args:
            generator: Source of the order; equal generators give equal orders.

        Raises:
            PresentationError: If ``generator`` is not a ``torch.Generator``.

        >>> p = Presentation("0011", dt=1.0).shuffled(torch.Generator().manual_seed(0))
        >>> sorted(p.pattern), p.n_timesteps
        ([0, 0, 1, 1], 4)
        """
        if not isinstance(generator, torch.Generator):
            raise PresentationError(
                f"shuffled received {generator!r}; expected a generator, such as "
                "torch.Generator().manual_seed(0)."
            )
        order = torch.randperm(
            len(self.pattern), generator=generator, device=generator.device
        ).tolist()
        return replace(
            self,
            pattern=tuple(self.pattern[i] for i in order),
            phases=None if self.phases is None else tuple(self.phases[i] for i in order),
        )

    def at_dt(self, dt: float) -> Presentation:
        """The same schedule in ms at another timestep.

        Durations, reaction and idle time keep their ms and are rounded to the new timesteps: a
        pattern's whole duration and every boundary of named phases to the nearest.

        Args:
            dt: Length of one timestep in ms.

        Raises:
            PresentationError: If a pattern entry, or a phase, would be left without a timestep.
            TimingError: If ``dt`` is not a legal dt.

        >>> Presentation("0110", dt=2.0, reaction_time=1.0).at_dt(0.5)
        Presentation('0110', dt=0.5, reaction_time=1.0, n_timesteps=16)
        """
        timestep = check_dt(dt)
        if self.phases is not None:
            length = phase_boundaries(self.phases, timestep)[-1]
            return replace(self, dt=timestep, n_timesteps=length)
        length = nearest_steps(self.duration, timestep, "duration")
        if length < len(self.pattern):
            entry = format_ms(self.duration / len(self.pattern))
            raise PresentationError(
                f"Each of the {len(self.pattern)} pattern entries lasts {entry}, less than a "
                f"timestep of {format_ms(timestep)}. Choose a smaller dt, or describe the "
                "presentation by Presentation.from_phases."
            )
        return replace(self, dt=timestep, n_timesteps=length)

    @property
    def duration(self) -> float:
        """Length in ms, without idle time."""
        return self.n_timesteps * self.dt

    @property
    def reaction_steps(self) -> int:
        """Timesteps of a reaction window."""
        return ceil_steps(self.reaction_time, self.dt, "reaction_time")

    @property
    def idle_steps(self) -> int:
        """Timesteps of null input before the presentation."""
        return ceil_steps(self.idle_time, self.dt, "idle_time")

    @property
    def supervised_steps(self) -> int:
        """How many timesteps are supervised."""
        phases = self._phase_stretches
        return sum(stop - start for start, stop, phase in phases if phase == Phase.SUPERVISED)

    @property
    def _shown_steps(self) -> int:
        return sum(stop - start for start, stop, stimulus in self._stretches if stimulus)

    @property
    def n_stimuli(self) -> int:
        """How many stimuli the images must give: the largest entry of the pattern."""
        return max(self.pattern)

    @property
    def onsets(self) -> tuple[int, ...]:
        """Timesteps that show a stimulus other than the timestep before them did."""
        return tuple(start for start, _, stimulus in self._stretches if stimulus)

    @property
    def stimulus_at(self) -> torch.Tensor:
        """Index of the stimulus shown at each timestep, 0 for null input: int64 ``[T]``."""
        return self.stimulus_between(0, self.n_timesteps)

    @property
    def entry_at(self) -> torch.Tensor:
        """Index of the pattern entry, or named phase, of each timestep: int64 ``[T]``."""
        with torch.inference_mode(False):
            entries = [(*ends, entry) for entry, ends in enumerate(pairwise(self._boundaries))]
            return filled(entries, 0, self.n_timesteps, torch.int64)

    @property
    def stimulus_mask(self) -> torch.Tensor:
        """Timesteps that show a stimulus: bool ``[T]``."""
        return self.stimulus_at > 0

    @property
    def reaction_mask(self) -> torch.Tensor:
        """Timesteps inside a reaction window, past the end of its stimulus too: bool ``[T]``."""
        return self.phase_codes == Phase.REACTION

    @property
    def supervised_mask(self) -> torch.Tensor:
        """Timesteps that show a stimulus outside every reaction window: bool ``[T]``."""
        return self.phase_codes == Phase.SUPERVISED

    @property
    def phase_codes(self) -> torch.Tensor:
        """The `Phase` of each timestep of the presentation: int8 ``[T]``, never ``IDLE``."""
        return self.phases_between(0, self.n_timesteps)

    # Tensors are made outside of inference mode even if asked for inside it: autograd could not
    # save them later.

    def stimulus_between(self, start: int, stop: int) -> torch.Tensor:
        """`stimulus_at` of the timesteps ``start`` to ``stop``, without making the others."""
        with torch.inference_mode(False):
            return filled(self._stretches, start, stop, torch.int64)

    def phases_between(self, start: int, stop: int) -> torch.Tensor:
        """`phase_codes` of the timesteps ``start`` to ``stop``, without making the others."""
        with torch.inference_mode(False):
            return filled(self._phase_stretches, start, stop, torch.int8)

    def asked_between(self, start: int, stop: int) -> torch.Tensor:
        """Which stimulus an answer at the timesteps ``start`` to ``stop`` is about: int64 ``[t]``.

        The one shown; during null input the last one shown, before the first the first; 0 if none
        ever is.
        """
        with torch.inference_mode(False):
            return filled(self._asked_stretches, start, stop, torch.int64)

    @property
    def asked(self) -> tuple[int, ...]:
        """The stimuli that an answer is about at any timestep; see `asked_between`."""
        return tuple(sorted({stimulus for *_, stimulus in self._asked_stretches}))

    @cached_property
    def _boundaries(self) -> tuple[int, ...]:
        if self.phases is None:
            return tuple(shares(len(self.pattern), self.n_timesteps))
        return phase_boundaries(self.phases, self.dt)

    @cached_property
    def _stretches(self) -> tuple[Stretch, ...]:
        ends = pairwise(self._boundaries)
        return merged((*pair, entry) for pair, entry in zip(ends, self.pattern, strict=True))

    @cached_property
    def _asked_stretches(self) -> tuple[Stretch, ...]:
        return asked_stretches(self._stretches)

    @cached_property
    def _phase_stretches(self) -> tuple[Stretch, ...]:
        return phase_stretches(self._stretches, self.reaction_steps)

    def null_input(self, images: torch.Tensor) -> torch.Tensor:
        """One timestep of null input for a batch.

        Args:
            images: ``[B, *features]``; ``[K, B, *features]`` for K > 1 stimuli.

        Returns:
            ``[B, *features]`` filled with ``null_value``, of the images' dtype and device.

        Raises:
            PresentationError: If the images do not fit, or their dtype has no such value.

        >>> Presentation("01", dt=1.0).null_input(torch.ones(2, 3)).tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
        """
        return null_like(split_stimuli(images, self.n_stimuli, "images")[0], self.null_value)

    def inputs_at(self, images: torch.Tensor) -> Iterator[torch.Tensor]:
        """What is shown at each timestep, without building the whole.

        Args:
            images: ``[B, *features]``; ``[K, B, *features]`` for K > 1 stimuli.

        Returns:
            An iterator over T tensors ``[B, *features]``: the same object for the same stimulus,
            and one for all null input. They are not copies: do not write to them.

        Raises:
            PresentationError: If the images do not fit the presentation (at once, not at the
                first timestep).

        >>> x = torch.ones(2, 3)
        >>> [float(shown.sum()) for shown in Presentation("011", dt=1.0).inputs_at(x)]
        [0.0, 6.0, 6.0]
        """
        return self.inputs_between(images, 0, self.n_timesteps)

    def inputs_between(self, images: torch.Tensor, start: int, stop: int) -> Iterator[torch.Tensor]:
        """`inputs_at` the timesteps ``start`` to ``stop``."""
        stimuli = split_stimuli(images, self.n_stimuli, "images")
        # A presentation without null input may take images that have no such value.
        null = self.null_input(images) if 0 in self.pattern else stimuli[0]
        shown = (null, *stimuli)
        return (shown[stimulus] for stimulus in self.stimulus_between(start, stop).tolist())

    def present(self, images: torch.Tensor) -> torch.Tensor:
        """The inputs of the whole presentation.

        Args:
            images: ``[B, *features]``; ``[K, B, *features]`` for K > 1 stimuli.

        Returns:
            ``[T, B, *features]``, of the images' dtype and device; a view, not to be written to,
            where one input is shown throughout.

        Raises:
            PresentationError: If the images do not fit the presentation, or their dtype cannot
                represent ``null_value``.

        >>> Presentation("010", dt=1.0).present(torch.ones(2, 5)).shape
        torch.Size([3, 2, 5])
        """
        inputs = list(self.inputs_at(images))
        if len(set(self.pattern)) == 1:
            return inputs[0].expand(self.n_timesteps, *inputs[0].shape)
        return torch.stack(inputs)

    def targets(self, labels: torch.Tensor) -> torch.Tensor:
        """The class to answer at each timestep.

        Args:
            labels: int64 ``[B]``; ``[K, B]`` for K > 1 stimuli. A label that is ``ignore_index``
                stays unsupervised.

        Returns:
            int64 ``[T, B]`` on the labels' device: the label of the stimulus shown, and
            ``ignore_index`` at timesteps that are not supervised.

        Raises:
            PresentationError: If the labels do not fit the presentation or are not int64.

        >>> p = Presentation("0112", dt=1.0)
        >>> p.targets(torch.tensor([[3, 4], [5, 6]])).tolist()
        [[-1, -1], [3, 4], [3, 4], [5, 6]]
        """
        stimuli = split_labels(labels, self.n_stimuli)
        ignored = torch.full_like(stimuli[0], self.ignore_index)
        shown, phases = self.stimulus_at.tolist(), self.phase_codes.tolist()
        return torch.stack(
            [
                stimuli[stimulus - 1] if phase == Phase.SUPERVISED else ignored
                for stimulus, phase in zip(shown, phases, strict=True)
            ]
        )

    def intervals(self) -> list[Interval]:
        """The presentation as stretches of one phase each, idle time first, in ms.

        Time 0 is the start of the presentation, so idle time is negative.

        >>> for interval in Presentation("00111", dt=2.0, reaction_time=4.0).intervals():
        ...     print(interval.start, interval.stop, interval.phase.name)
        0.0 4.0 NULL
        4.0 8.0 REACTION
        8.0 10.0 SUPERVISED
        """
        idle = [Interval(-self.idle_steps * self.dt, 0.0, Phase.IDLE)] if self.idle_steps else []
        return idle + [
            Interval(start * self.dt, stop * self.dt, Phase(code))
            for start, stop, code in self._phase_stretches
        ]

    def stimulus_intervals(self) -> list[tuple[float, float, int]]:
        """When each stimulus is shown: its start and stop in ms, and its index.

        >>> Presentation("0112", dt=2.0).stimulus_intervals()
        [(2.0, 6.0, 1), (6.0, 8.0, 2)]
        """
        return [
            (start * self.dt, stop * self.dt, stimulus)
            for start, stop, stimulus in self._stretches
            if stimulus
        ]

    def describe(self) -> str:
        """The presentation in one line, for tables.

        >>> Presentation("0011111000", dt=2.0, reaction_time=6.0).describe()
        '20 ms (10 timesteps of 2 ms), 1 stimulus, shown 10 ms, supervised 4 ms, reaction time 6 ms'
        """
        n = self.n_stimuli
        parts = [
            f"{format_ms(self.duration)} ({self.n_timesteps} timestep"
            f"{'s' if self.n_timesteps != 1 else ''} of {format_ms(self.dt)})",
            f"{n} stimul{'us' if n == 1 else 'i'}",
            f"shown {format_ms(self._shown_steps * self.dt)}",
            f"supervised {format_ms(self.supervised_steps * self.dt)}",
        ]
        if self.reaction_time:
            parts.append(f"reaction time {format_ms(self.reaction_time)}")
        if self.idle_time:
            parts.append(f"idle time {format_ms(self.idle_time)} before it")
        return ", ".join(parts)

    def __repr__(self) -> str:
        if self.phases is None:
            head = f"Presentation({written(self.pattern)!r}, dt={self.dt!r}"
        else:
            triples = [tuple(phase) for phase in self.phases]
            head = f"Presentation.from_phases({triples!r}, dt={self.dt!r}"
        optional = [
            ("reaction_time", self.reaction_time, 0.0),
            ("idle_time", self.idle_time, 0.0),
            ("null_value", self.null_value, 0.0),
            ("ignore_index", self.ignore_index, -1),
        ]
        if self.phases is None:
            optional.append(("n_timesteps", self.n_timesteps, len(self.pattern)))
        changed = [f", {name}={value!r}" for name, value, default in optional if value != default]
        return head + "".join(changed) + ")"

    def _warn_of_unsupervised(self) -> None:
        window = self.reaction_steps
        short = [
            start
            for start, stop, stimulus in self._stretches
            if stimulus and stop - start <= window
        ]
        if short:
            named = ", ".join(f"{t} ({format_ms(t * self.dt)})" for t in short[:_NAMED_ONSETS])
            more = len(short) - _NAMED_ONSETS
            warnings.warn(
                f"The reaction window of {format_steps(window, self.dt)} leaves "
                f"nothing supervised of the stimuli with onset at timestep {named}"
                f"{f' and {more} more' if more > 0 else ''}. "
                "Show them longer or shorten reaction_time.",
                PresentationWarning,
                stacklevel=3,
            )
        if not self.supervised_steps:
            warnings.warn(
                f"No timestep is supervised in this presentation ({self.describe()}): its "
                "cross-entropy is 0 and its accuracy undefined.",
                PresentationWarning,
                stacklevel=3,
            )


def split_stimuli(tensor: torch.Tensor, n_stimuli: int, what: str) -> tuple[torch.Tensor, ...]:
    """Images or labels by stimulus, at least one (which a presentation may never show).

    Raises:
        PresentationError: If they do not fit `n_stimuli`.
    """
    if not isinstance(tensor, torch.Tensor):
        raise PresentationError(f"{what} are a {type(tensor).__name__}; expected a torch.Tensor.")
    several = n_stimuli > 1
    if tensor.ndim < 1 + several:
        raise PresentationError(
            f"{what} have shape {list(tensor.shape)}; expected at least "
            f"{'[K, B]: stimuli, then the batch' if several else '[B]: the batch'}."
        )
    if not several:
        return (tensor,)
    if tensor.shape[0] != n_stimuli:
        raise PresentationError(
            f"{what} have shape {list(tensor.shape)}, so {tensor.shape[0]} stimuli, but the "
            f"pattern shows up to stimulus {n_stimuli}. Stack one batch per stimulus: "
            f"[{n_stimuli}, B, ...]."
        )
    return tensor.unbind(0)


def split_labels(labels: torch.Tensor, n_stimuli: int) -> tuple[torch.Tensor, ...]:
    """Labels by stimulus, int64 ``[B]`` each.

    Raises:
        PresentationError: If they do not fit `n_stimuli` or are not int64.
    """
    stimuli = split_stimuli(labels, n_stimuli, "labels")
    if stimuli[0].ndim != 1:
        raise PresentationError(
            f"labels have shape {list(labels.shape)}; expected "
            f"{'[K, B]' if n_stimuli > 1 else '[B]'}: one class per sample"
            f"{' and stimulus' if n_stimuli > 1 else ''}."
        )
    if labels.dtype != torch.int64:
        raise PresentationError(
            f"labels have dtype {labels.dtype}; expected class indices of dtype torch.int64. "
            "Pass labels.long(), or labels.argmax(-1) for one-hot labels."
        )
    return stimuli


def _parse_null_value(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise PresentationError(f"null_value is {value!r}; expected a finite number, such as 0.0.")
    return float(value)


def null_like(one: torch.Tensor, value: float) -> torch.Tensor:
    """One timestep of null input, like `one`.

    Raises:
        PresentationError: If its dtype has no such value.
    """
    _check_representable(value, one.dtype)
    return torch.full_like(one, value, requires_grad=False)


def _check_representable(value: float, dtype: torch.dtype) -> None:
    if dtype.is_complex or dtype.is_floating_point:
        fits = abs(value) <= torch.finfo(dtype).max
    elif dtype == torch.bool:
        fits = value in (0.0, 1.0)
    else:
        limits = torch.iinfo(dtype)
        fits = value.is_integer() and limits.min <= value <= limits.max
    if not fits:
        raise PresentationError(
            f"The null_value {value} is not a value of the images' dtype, {dtype}. Choose another "
            "null_value, or convert the images, such as with images.float()."
        )
