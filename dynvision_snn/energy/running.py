"""What each sample of one run costs, piece by piece, up to the moments that are marked in it.

A run is a whole or comes in pieces that go on from each other. Of the last piece counts are kept by
timestep and sample, summed from the run's beginning; of those before it nothing but that sum. So a
moment has to be marked while its piece is the last one, and so has the onset that it counts from;
what both read of the sums is kept, two numbers per sample, onset and series.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dynvision_snn.energy.layers import Series
from dynvision_snn.errors import EnergyError
from dynvision_snn.timing import containing_steps, format_steps

BySample = Mapping[str, Mapping[Series, Tensor]]
"""Counts of some samples by row and series."""

Onsets = Sequence[int] | Tensor
"""Timesteps of onsets, of all samples alike or ``[onsets, B]``."""

Kept = tuple[BySample, Tensor]
"""Counts of some samples, and over how many timesteps they are."""


@dataclass(slots=True)
class _Marked:
    """What was read of the sums for one moment, ``[onsets, B]`` each.

    Attributes:
        begun: whether the onset was read.
        stop: the timesteps through which the moment was read; 0 where it was not.
        before, through: the sums up to the onset, and through the moment.
    """

    begun: Tensor
    stop: Tensor
    before: BySample = field(default_factory=dict)
    through: BySample = field(default_factory=dict)


class RunSamples:
    """The cost of each sample of one run; see above.

    Args:
        batch_size: B.

    Attributes:
        n_timesteps: timesteps so far.
        lengths: those of each sample that are no padding, int64 ``[B]``.
    """

    def __init__(self, batch_size: int) -> None:
        self.n_timesteps = 0
        self.lengths = torch.zeros(batch_size, dtype=torch.int64)
        self._batch_size = batch_size
        self._start = 0
        self._through: BySample = {}
        self._marked: dict[str, _Marked] = {}

    @property
    def marked(self) -> frozenset[str]:
        """The moments that were marked."""
        return frozenset(self._marked)

    def add(self, counts: BySample, n_timesteps: int, active: Tensor | None) -> None:
        """The next piece.

        Args:
            counts: ``[t, B]`` each; a row or series that is missing counts nothing.
            n_timesteps: t.
            active: which of its timesteps are no padding, bool ``[t, B]``; None where all are.
        """
        names: dict[str, dict[Series, None]] = {}
        for piece in (self._through, counts):
            for row, series in piece.items():
                names.setdefault(row, {}).update(dict.fromkeys(series))

        def summed(row: str, name: Series) -> Tensor:
            known = self._through.get(row, {}).get(name)
            new = counts.get(row, {}).get(name)
            if new is None:
                assert known is not None
                return known[-1:].expand(n_timesteps + 1, -1)
            if active is not None:
                new = new * active.to(new.device)
            first = torch.zeros_like(new[:1]) if known is None else known[-1:].to(new.device)
            return torch.cat([first, new]).cumsum(0)

        self._through = {row: {n: summed(row, n) for n in series} for row, series in names.items()}
        self._start, self.n_timesteps = self.n_timesteps, self.n_timesteps + n_timesteps
        self.lengths = self.lengths + (n_timesteps if active is None else active.sum(0).cpu())

    def whole(self) -> Kept:
        """Sums over the run so far, ``[1, B]`` each, and the timesteps they are of, ``[1, B]``."""
        summed = {
            row: {name: sums[-1:].clone() for name, sums in series.items()}
            for row, series in self._through.items()
        }
        return summed, self.lengths.double()[None]

    def mark(self, name: str, times: Tensor, onsets: Onsets, dt: float) -> Kept:
        """Sums from each onset through the timestep of a moment.

        Args:
            name: of the moment. Marked again after a later piece, it may have come later.
            times: moments in ms after each onset, ``[onsets, B]``; NaN for none, or none so far.
            onsets: timesteps at which the counting begins; ``[onsets, B]`` where each sample has
                its own, with -1 where it has none and its time is NaN.
            dt: length of a timestep in ms.

        Returns:
            Sums, ``[onsets, B]`` each, and the timesteps they are of; NaN where there is no moment.

        Raises:
            EnergyError: onsets that are no integers, times of another shape, beyond the run, or
                before its last piece and not read there.
        """
        start = torch.as_tensor(onsets, device=times.device)
        if start.is_floating_point():
            raise EnergyError(
                f"onsets are {start.tolist()}; expected timesteps, as integers: the ms of an "
                "onset, divided by dt."
            )
        expected = (len(onsets), self._batch_size)
        if tuple(times.shape) != expected:
            raise EnergyError(
                f"times have shape {list(times.shape)}; expected {list(expected)}: ms after each "
                "onset, of each sample of the last run."
            )
        start = start.reshape(len(onsets), -1).expand(expected)
        missing = times.isnan()
        stop = start + containing_steps(times.double().nan_to_num(0.0), dt) + 1
        outside = (start < 0) | (stop > self.lengths.to(stop.device))
        if bool((outside & ~missing).any()):
            raise EnergyError(
                f"a moment lies outside of the run of {format_steps(self.n_timesteps, dt)}, or "
                "of its sample's own; times are in ms after the onset."
            )
        known = self._marked.get(name)
        if known is None or known.stop.shape != stop.shape:
            known = _Marked(torch.zeros_like(missing), torch.zeros_like(stop))
        begins = (start >= self._start) & (start < self.n_timesteps)
        reached = (stop > self._start) & ~missing
        marked = _Marked(
            known.begun | begins,
            torch.where(reached, stop, known.stop),
            self._read(start, begins, known.before),
            self._read(stop, reached, known.through),
        )
        if bool(((~marked.begun | (marked.stop != stop)) & ~missing).any()):
            raise EnergyError(
                f"mark({name!r}) came too late: a moment, or its onset, lies before the last piece "
                "of the run, of which alone counts by timestep are kept. Mark after each piece, "
                "with the moments known by then and NaN for the others; or run it at once."
            )
        self._marked[name] = marked

        def between(row: str, series: Series) -> Tensor:
            spent = marked.through[row][series] - marked.before[row][series]
            return spent.masked_fill(missing.to(spent.device), torch.nan)

        summed = {
            row: {series: between(row, series) for series in by_series}
            for row, by_series in marked.through.items()
        }
        return summed, (stop - start).double().masked_fill(missing, torch.nan)

    def _read(self, steps: Tensor, wanted: Tensor, known: BySample) -> BySample:
        """The sums through the first `steps` timesteps where wanted, else what is known."""
        within = (steps - self._start).clamp(0, self.n_timesteps - self._start)

        def read(row: str, name: Series, sums: Tensor) -> Tensor:
            found = sums.gather(0, within.to(sums.device))
            before = known.get(row, {}).get(name)
            before = torch.zeros_like(found) if before is None else before.to(found.device)
            return torch.where(wanted.to(found.device), found, before)

        return {
            row: {name: read(row, name, sums) for name, sums in series.items()}
            for row, series in self._through.items()
        }
