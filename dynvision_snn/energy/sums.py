"""Sums over the runs of a measurement: by phase and timestep, or by phase alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


def joined_on_one(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """One after the other, on the device of the last: a model may have moved meanwhile."""
    device = parts[-1].device
    return torch.cat([part if part.device == device else part.to(device) for part in parts], dim)


@dataclass(frozen=True, slots=True)
class Extent:
    """How much the one column of a budget sums that was not kept by timestep.

    Attributes:
        n_samples: samples measured.
        n_timesteps: timesteps of the longest run.
    """

    n_samples: int
    n_timesteps: int

    def __add__(self, other: Extent) -> Extent:
        return Extent(self.n_samples + other.n_samples, max(self.n_timesteps, other.n_timesteps))


@dataclass(frozen=True, eq=False)
class Spread:
    """How the counts of a run are spread over phases and timesteps.

    Attributes:
        phases: ``[phases, T]`` of 0 and 1; ``[phases, T, B]`` where each sample has its own, and
            padding is in none.
        batch_size: B.
        start: the timestep at which the run begins.
    """

    phases: Tensor
    batch_size: int
    start: int = 0

    @property
    def n_timesteps(self) -> int:
        """T."""
        return self.phases.shape[1]

    @property
    def present(self) -> Tensor:
        """Samples in each phase at each timestep: ``[phases, T]``."""
        return self.phases * self.batch_size if self.phases.ndim == 2 else self.phases.sum(2)

    @cached_property
    def occurring(self) -> tuple[int, ...]:
        """The phases that any sample is in at any timestep."""
        return tuple(self.phases.flatten(1).any(1).nonzero().flatten().tolist())

    def of(self, counts: Tensor) -> Tensor:
        """Counts ``[series, T]``, or of each sample ``[series, T, B]``, by phase.

        Returns:
            ``[phases, series, T]``.
        """
        phases = self.phases.unsqueeze(1).to(counts.device, non_blocking=True)
        if phases.ndim == 4:
            return (phases * (counts if counts.ndim == 3 else counts.unsqueeze(2))).sum(3)
        return phases * (counts if counts.ndim == 2 else counts.sum(2))


class OverTime:
    """Sums over runs: of each phase that occurs one number per timestep, or one of all timesteps.

    Runs are added to what is there, and only a longer one takes more memory.

    Args:
        by_timestep: whether timesteps are kept apart.
        n_series: how many series are summed, side by side; one without an axis if None.

    >>> total = OverTime()
    >>> total.add(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), [0])
    >>> total.add(torch.tensor([[0.0], [5.0]]), [1], start=2)
    >>> total.of([0, 1]).tolist()
    [[1.0, 2.0, 0.0], [0.0, 0.0, 5.0]]
    """

    def __init__(self, by_timestep: bool = True, n_series: int | None = None) -> None:
        self._by_timestep = by_timestep
        self._side_by_side = () if n_series is None else (n_series,)
        self._rows: dict[int, Tensor] = {}
        self.n_timesteps = 0

    @property
    def phases(self) -> list[int]:
        """The phases that occurred."""
        return sorted(self._rows)

    def add(self, run: Tensor, phases: Sequence[int], start: int = 0) -> None:
        """Adds ``[phases, (series,) T]``, zeros but for `phases`; it begins at `start`."""
        if not self._by_timestep:
            run, start = run.sum(-1, keepdim=True), 0
        stop = start + run.shape[-1]
        self.n_timesteps = max(self.n_timesteps, stop)
        for phase in phases:
            row = self._row(phase, stop, run)
            row[..., start:stop] += run[phase].to(row.device)

    def of(self, phases: Sequence[int], n_timesteps: int | None = None) -> Tensor:
        """A copy, ``[phases, (series,) T]``; T is that of the longest run unless it is said."""
        length = self.n_timesteps if n_timesteps is None else n_timesteps
        device = next((row.device for row in self._rows.values()), None)
        shape = (len(phases), *self._side_by_side, length)
        table = torch.zeros(shape, dtype=torch.float64, device=device)
        for place, phase in enumerate(phases):
            if phase in self._rows:
                row = self._rows[phase][..., :length]
                table[place, ..., : row.shape[-1]] = row
        return table

    def _row(self, phase: int, stop: int, like: Tensor) -> Tensor:
        row = self._rows.get(phase)
        if row is not None and row.shape[-1] >= stop:
            return row
        known = 0 if row is None else row.shape[-1]
        # Half as much again: a run in many pieces is not copied for each of them. And outside of
        # inference mode, so that it can be added to in a later run that is not in it.
        with torch.inference_mode(False):
            shape = (*self._side_by_side, max(stop, known * 3 // 2))
            longer = torch.zeros(shape, dtype=torch.float64, device=like.device)
            if row is not None:
                longer[..., :known] = row
        self._rows[phase] = longer
        return longer


class Sums:
    """Sums over runs, on the layer's device: its series, and what was received.

    Args:
        n_series: how many series the layer has.
        by_timestep: whether timesteps are kept apart.

    Attributes:
        total: the series by phase and timestep.
        least, most: smallest nonzero and largest ``|x|`` received; None before anything was.
    """

    def __init__(self, n_series: int, by_timestep: bool = True) -> None:
        self.total = OverTime(by_timestep, n_series)
        self.least: Tensor | None = None
        self.most: Tensor | None = None

    def add(self, counted: Tensor, known: Tensor, spread: Spread, seen: Sequence[Tensor]) -> None:
        """Adds one run.

        Args:
            counted: all series but the last, ``[series, T]`` or ``[series, T, B]``.
            known: the last, of each sample, ``[T]``.
            spread: how they are spread over phases.
            seen: what its calls saw (see `Tally`).
        """
        by_phase = spread.of(counted)
        last = (known * spread.present).unsqueeze(1).to(by_phase.device, non_blocking=True)
        self.total.add(torch.cat([by_phase, last], 1), spread.occurring, spread.start)
        if seen:
            _, smallest, largest = joined_on_one(seen, dim=1)
            least, most = smallest.amin(), largest.amax()
            self.least = least if self.least is None else torch.minimum(self.least, least)
            self.most = most if self.most is None else torch.maximum(self.most, most)
