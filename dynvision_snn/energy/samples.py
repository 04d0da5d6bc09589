"""What each sample cost, up to its answer: energy beside decision time.

Of a finished run a few numbers per sample stay: the whole, and the sums up to each moment asked
for; what is kept while it runs is in `running`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dynvision_snn.energy.hardware import ProfileLike, resolve_profile
from dynvision_snn.energy.layers import QUANTITIES, LayerCounts, Quantity, Series
from dynvision_snn.energy.pricing import price_series
from dynvision_snn.energy.running import BySample, Kept
from dynvision_snn.errors import EnergyError, known_names

WHOLE = "whole"
"""The moment at the end of a run."""

SAMPLE_QUANTITIES: tuple[Quantity, ...] = tuple(q for q in QUANTITIES if q != "synops_weighted")
"""What is counted of each sample."""

PROBABILITIES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, slots=True)
class Spread:
    """How a cost is spread over samples.

    Attributes:
        n_samples: samples that have the cost; those that never reached the moment have none.
        mean: their mean.
        std: their standard deviation, with ``n_samples - 1``; NaN of a single sample.
        quantiles: by probability, linear between samples.
    """

    n_samples: int
    mean: float
    std: float
    quantiles: dict[float, float]

    @classmethod
    def of(cls, values: Tensor, probabilities: Sequence[float] = PROBABILITIES) -> Spread:
        """Of one value per sample, ``[N]``; NaN stands for none.

        >>> Spread.of(torch.tensor([1.0, 2.0, 3.0, torch.nan])).mean
        2.0
        """
        known = values[~values.isnan()].double()
        n = len(known)
        if n == 0:
            return cls(0, torch.nan, torch.nan, dict.fromkeys(probabilities, torch.nan))
        at = torch.tensor(probabilities, dtype=torch.float64)
        # Not torch.quantile, which refuses more than 2**24 values.
        place = at * (n - 1)
        ordered = known.sort().values
        low, high = place.floor().long(), place.ceil().long()
        quantiles = torch.lerp(ordered[low], ordered[high], place - low)
        return cls(
            n_samples=n,
            mean=float(known.mean()),
            std=float(known.std()) if n > 1 else torch.nan,
            quantiles=dict(zip(probabilities, quantiles.tolist(), strict=True)),
        )


@dataclass(frozen=True, eq=False, slots=True)
class SampleEnergy:
    """The cost of every sample, up to each moment that was marked.

    Attributes:
        rows: the layers of the whole measurement; they decide which operations are ACs and MACs.
        counts: by moment, row and series, ``[onsets, N]`` (``[1, N]`` of the whole run); NaN of a
            sample that has no such moment.
        timesteps: by moment, how many timesteps are summed.
    """

    rows: Sequence[LayerCounts]
    counts: Mapping[str, BySample]
    timesteps: Mapping[str, Tensor]

    @classmethod
    def of_runs(
        cls, rows: Sequence[LayerCounts], runs_by_moment: Mapping[str, Sequence[Kept]]
    ) -> SampleEnergy:
        """The runs of a measurement, one after the other."""
        counts: dict[str, BySample] = {}
        timesteps: dict[str, Tensor] = {}
        for moment, runs in runs_by_moment.items():
            timesteps[moment] = _side_by_side([steps.cpu() for _, steps in runs])
            counts[moment] = {
                row.name: {name: _joined(row.name, name, runs) for name in _by_sample(row)}
                for row in rows
            }
        return cls(rows, counts, timesteps)

    @property
    def n_samples(self) -> int:
        """Samples measured."""
        return self.timesteps[WHOLE].shape[1]

    @property
    def moments(self) -> tuple[str, ...]:
        """What was marked; ``"whole"`` always."""
        return tuple(self.timesteps)

    def operations(self, quantity: str, until: str = WHOLE) -> Tensor:
        """One count of every sample, from the onset through its moment: float64 ``[onsets, N]``.

        Raises:
            EnergyError: an unknown quantity or moment.
        """
        for known in SAMPLE_QUANTITIES:
            if quantity == known:
                return self._quantity(known, until)
        raise EnergyError(
            f"Unknown quantity {quantity!r}. {known_names(quantity, SAMPLE_QUANTITIES)}"
        )

    def joules(self, profile: ProfileLike, until: str = WHOLE) -> Tensor:
        """J of every sample on a profile, from the onset through its moment: ``[onsets, N]``.

        As in a budget, what the profile has no figure for is left out: ask
        `EnergyBudget.joules` what it lacks.

        Raises:
            EnergyError: an unknown profile or moment.
        """
        counts = {str(quantity): self._quantity(quantity, until) for quantity in SAMPLE_QUANTITIES}
        return price_series(resolve_profile(profile), counts, self._timesteps(until))

    def _timesteps(self, until: str) -> Tensor:
        if until not in self.timesteps:
            raise EnergyError(f"Unknown moment {until!r}. {known_names(until, self.moments)}")
        return self.timesteps[until]

    def _quantity(self, quantity: Quantity, until: str) -> Tensor:
        total = torch.zeros_like(self._timesteps(until))
        for row in self.rows:
            found = _series(row, self.counts[until][row.name], quantity)
            if found is not None:
                total = total + found
        # A row without the series says nothing, but a sample without the moment has no cost.
        return total.masked_fill(self._timesteps(until).isnan(), torch.nan)


def _series(row: LayerCounts, counts: Mapping[Series, Tensor], quantity: Quantity) -> Tensor | None:
    if quantity == "synops_ac" or quantity == "synops_mac":
        has_them = row.carries_spikes == (quantity == "synops_ac")
        return counts.get("synops") if has_them else None
    return counts.get(quantity)


def _by_sample(row: LayerCounts) -> list[Series]:
    """The series of a row that are kept by sample."""
    return [name for name in row.series if name not in ("synops_weighted", "events")]


def _joined(row: str, name: Series, runs: Sequence[Kept]) -> Tensor:
    """One series of every run's samples; 0 in runs in which the layer was not called."""
    parts = [
        by_row[row][name].cpu()
        if name in by_row.get(row, {})
        else torch.where(steps.cpu().isnan(), torch.nan, 0.0).double()
        for by_row, steps in runs
    ]
    return _side_by_side(parts)


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """``[onsets, N]`` of runs that may have fewer onsets; NaN where a run has none."""
    most = max(len(part) for part in parts)
    rows = [functional.pad(part, (0, 0, 0, most - len(part)), value=torch.nan) for part in parts]
    return torch.cat(rows, dim=1)
