"""The rules of a presentation, as pure functions: entries in, stretches of timesteps out.

A stretch is a run of timesteps that show the same, or are in the same phase. Onsets, reaction
windows and phases follow from those of the stimuli alone, however many timesteps they have; one
value per timestep is made of them for the timesteps that are asked for (`filled`). Everything a
user may pass for a pattern or for named phases is checked here.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from enum import IntEnum
from itertools import groupby, pairwise
from numbers import Integral
from operator import index, itemgetter
from typing import TYPE_CHECKING, NamedTuple

import torch

from dynvision_snn.errors import PresentationError
from dynvision_snn.timing import check_time, cumulative_steps, format_ms, format_steps

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "Interval",
    "NamedPhase",
    "Phase",
    "Stretch",
    "asked_stretches",
    "check_phases",
    "filled",
    "merged",
    "parse_integer",
    "parse_length",
    "parse_pattern",
    "parse_phases",
    "phase_boundaries",
    "phase_stretches",
    "shares",
    "stretches",
    "written",
]


class Phase(IntEnum):
    """What a timestep is to the run; every timestep is exactly one of these.

    ``IDLE`` is idle time, before the presentation. Within it: ``REACTION`` is a timestep inside a
    reaction window, whether or not its stimulus is still shown (a null timestep inside a window is
    ``REACTION``); ``SUPERVISED`` shows a stimulus outside every window; ``NULL`` is the rest: null
    input outside every window. ``PADDING`` is past the end of a sample whose batch goes on.
    """

    IDLE = 0
    NULL = 1
    REACTION = 2
    SUPERVISED = 3
    PADDING = 4


class NamedPhase(NamedTuple):
    """A named part of a presentation: its duration in ms and what it shows (0: null input)."""

    name: str
    duration: float
    stimulus: int


class Interval(NamedTuple):
    """A stretch of one kind of timestep, in ms from the start of the presentation."""

    start: float
    stop: float
    phase: Phase


Stretch = tuple[int, int, int]
"""Consecutive timesteps of one value: the first, the one after the last, the value."""


def shares(n_entries: int, n_timesteps: int) -> list[int]:
    """Where the entries of a pattern begin, and the end: ``t * n_entries // n_timesteps`` at t.

    >>> shares(2, 5)
    [0, 3, 5]
    """
    return [-(-entry * n_timesteps // n_entries) for entry in range(n_entries + 1)]


def merged(parts: Iterable[Stretch]) -> tuple[Stretch, ...]:
    """Stretches, each as long as its value lasts.

    >>> merged([(0, 2, 1), (2, 3, 1), (3, 4, 0)])
    ((0, 3, 1), (3, 4, 0))
    """
    joined: list[Stretch] = []
    for start, stop, value in parts:
        if joined and joined[-1][2] == value:
            start = joined.pop()[0]
        joined.append((start, stop, value))
    return tuple(joined)


def phase_stretches(shown: Iterable[Stretch], reaction_steps: int) -> tuple[Stretch, ...]:
    """The phases, from the stimuli shown (merged): each that is none of null input is an onset.

    >>> phase_stretches([(0, 2, 0), (2, 3, 1), (3, 9, 0)], reaction_steps=3)
    ((0, 2, 1), (2, 5, 2), (5, 9, 1))
    """

    def parts() -> Iterator[Stretch]:
        window = 0
        for start, stop, stimulus in shown:
            if stimulus:
                window = start + reaction_steps
            if start < window:
                yield start, min(stop, window), int(Phase.REACTION)
            if window < stop:
                outside = Phase.SUPERVISED if stimulus else Phase.NULL
                yield max(start, window), stop, int(outside)

    return merged(parts())


def asked_stretches(shown: Iterable[Stretch]) -> tuple[Stretch, ...]:
    """Which stimulus an answer is about: the one shown, else the last one, else the first to come.

    >>> asked_stretches([(0, 2, 0), (2, 3, 1), (3, 5, 0), (5, 6, 2)])
    ((0, 5, 1), (5, 6, 2))
    """
    given = list(shown)
    last = next((stimulus for *_, stimulus in given if stimulus), 0)
    asked = []
    for start, stop, stimulus in given:
        last = stimulus or last
        asked.append((start, stop, last))
    return merged(asked)


def filled(parts: Sequence[Stretch], start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
    """The value at each of the timesteps ``start`` to ``stop`` that stretches cover, ``[t]``.

    >>> filled([(0, 3, 7), (3, 9, 8)], 1, 5, torch.int64).tolist()
    [7, 7, 8, 8]
    """
    first = max(0, bisect_right(parts, start, key=itemgetter(0)) - 1)
    last = bisect_left(parts, stop, key=itemgetter(0))
    met = [(max(a, start), min(b, stop), value) for a, b, value in parts[first:last]]
    lengths = torch.tensor([b - a for a, b, _ in met], dtype=torch.int64, device="cpu")
    values = torch.tensor([value for *_, value in met], dtype=dtype, device="cpu")
    return values.repeat_interleave(lengths.clamp(min=0))


def stretches(values: Sequence[int]) -> Iterator[Stretch]:
    """The stretches of one value per timestep."""
    start = 0
    for value, group in groupby(values):
        stop = start + sum(1 for _ in group)
        yield start, stop, value
        start = stop


def written(pattern: tuple[int, ...]) -> str | list[int]:
    """A pattern in its shortest form: digits, or a list once an entry has two."""
    return "".join(map(str, pattern)) if max(pattern) <= 9 else list(pattern)


def parse_pattern(pattern: str | Sequence[int]) -> tuple[int, ...]:
    """The entries of a pattern given as digits or integers; anything else is an error.

    >>> parse_pattern("0120"), parse_pattern([0, 12])
    ((0, 1, 2, 0), (0, 12))
    """
    if isinstance(pattern, str):
        strange = sorted(set(pattern) - set("0123456789"))
        if strange:
            raise PresentationError(
                f"The pattern {pattern!r} holds {', '.join(map(repr, strange))}; expected the "
                "digits 0-9 (0: null input, k: the k-th stimulus), such as '0011'."
            )
        entries = tuple(int(digit) for digit in pattern)
    else:
        try:
            entries = tuple(index(entry) for entry in pattern)
        except TypeError as error:
            raise PresentationError(
                f"The pattern is {pattern!r}; expected a string of digits such as '0011' (in YAML "
                "too, in quotes) or a sequence of integers."
            ) from error
    if not entries:
        raise PresentationError("The pattern is empty; expected at least one entry, such as '1'.")
    if min(entries) < 0:
        raise PresentationError(
            f"The pattern holds {min(entries)}; expected 0 (null input) or k >= 1 (the k-th "
            "stimulus)."
        )
    return entries


def parse_length(n_timesteps: int | None, n_entries: int, dt: float) -> int:
    """The timesteps of a pattern, at least one per entry; one per entry by default."""
    if n_timesteps is None:
        return n_entries
    length = parse_integer(n_timesteps, "n_timesteps")
    if length < n_entries:
        raise PresentationError(
            f"n_timesteps is {length} ({format_ms(length * dt)}), fewer than the {n_entries} "
            "entries of the pattern; expected "
            f"at least {n_entries}, so that every entry is shown, or a shorter pattern."
        )
    return length


def parse_integer(value: int, name: str) -> int:
    """An integer that is not a bool, as a plain int."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise PresentationError(f"{name} is {value!r}; expected an integer.")
    return int(value)


def parse_phases(phases: Iterable[tuple[str, float, int]]) -> tuple[NamedPhase, ...]:
    """Named phases from triples of name, duration in ms and stimulus; anything else is an error."""
    if not isinstance(phases, Iterable):
        raise PresentationError(
            f"The phases are {phases!r}; expected a list of (name, duration in ms, stimulus)."
        )
    named = []
    for phase in phases:
        try:
            name, duration, stimulus = phase
        except (TypeError, ValueError) as error:
            raise PresentationError(
                f"A phase is {phase!r}; expected its name, duration in ms and stimulus, such as "
                "('digit', 200, 1)."
            ) from error
        if not isinstance(name, str) or not name:
            raise PresentationError(
                f"The phase {phase!r} has the name {name!r}; expected a string."
            )
        length = check_time(duration, f"The duration of phase {name!r}")
        shown = parse_integer(stimulus, f"The stimulus of phase {name!r}")
        if shown < 0:
            raise PresentationError(
                f"The stimulus of phase {name!r} is {shown}; expected 0 (null input) or k >= 1."
            )
        named.append(NamedPhase(name, length, shown))
    if not named:
        raise PresentationError("There are no phases; expected at least one.")
    return tuple(named)


def phase_boundaries(phases: Sequence[NamedPhase], dt: float) -> tuple[int, ...]:
    """The timesteps at which named phases begin, and the one after the last."""
    return cumulative_steps((phase.duration for phase in phases), dt)


def check_phases(
    phases: tuple[NamedPhase, ...],
    entries: tuple[int, ...],
    dt: float,
    n_timesteps: int | None,
) -> None:
    """Refuse phases that contradict the pattern or length beside them, or that vanish at ``dt``."""
    if entries != tuple(phase.stimulus for phase in phases):
        raise PresentationError(
            f"The pattern {list(entries)} is not what the phases show; build named phases with "
            "Presentation.from_phases."
        )
    boundaries = phase_boundaries(phases, dt)
    if n_timesteps is not None and n_timesteps != boundaries[-1]:
        raise PresentationError(
            f"n_timesteps is {n_timesteps} ({format_ms(n_timesteps * dt)}), but the phases last "
            f"{format_steps(boundaries[-1], dt)}. Leave it out; Presentation.at_dt gives the "
            "phases at another dt."
        )
    for phase, (start, stop) in zip(phases, pairwise(boundaries), strict=True):
        if start == stop:
            raise PresentationError(
                f"The phase {phase.name!r} of {format_ms(phase.duration)} is left without a "
                f"timestep at dt = {format_ms(dt)}. Make it longer, or dt smaller."
            )
