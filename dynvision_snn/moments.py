"""A moment in every sample's run (settling, a decision): when, how right, at what cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from dynvision_snn.energy import SampleEnergy, resolve_profile
from dynvision_snn.energy.budget import ProfileLike
from dynvision_snn.energy.pricing import price_series
from dynvision_snn.energy.samples import SAMPLE_QUANTITIES
from dynvision_snn.errors import DataError

__all__ = ["SETTLING", "Moment"]

SETTLING = "settling"
"""The moment after which the decoded class no longer changes, known in hindsight."""


@dataclass(frozen=True, eq=False)
class Moment:
    """When each sample reached it from each onset, and what it had cost by then.

    A sample whose label is ignored is not measured: it has no time and no cost, as if it had never
    got there, and counts in no share.

    Attributes:
        times: ms from each onset, float64 ``[onsets, N]``; NaN where it was never reached, or
            nothing is asked.
        right: whether the class at that moment is the answer, bool ``[onsets, N]``; False where
            it was never reached.
        asked: whether there is an answer to give, bool ``[onsets, N]``; False where the sample has
            no such onset, or its label there is ignored.
        operations: counts from the onset through the moment's timestep by quantity, float64
            ``[onsets, N]``; NaN where there is no time.
        timesteps: of how many timesteps these are.
        rule: the decision rule in full; what it is called is up to whoever marks the moment.
    """

    times: Tensor
    right: Tensor
    asked: Tensor
    operations: Mapping[str, Tensor]
    timesteps: Tensor
    rule: str = ""

    def __post_init__(self) -> None:
        shapes = {
            tuple(tensor.shape)
            for tensor in (
                self.times,
                self.right,
                self.asked,
                self.timesteps,
                *self.operations.values(),
            )
        }
        if len(shapes) > 1 or self.times.ndim != 2:
            raise DataError(f"A moment has shapes {sorted(shapes)}; expected one [onsets, N].")
        if bool((~self.times.isnan() & ~self.asked).any()):
            raise DataError(
                "A moment has a time where nothing is asked; expected NaN there, so that samples "
                "whose label is ignored are in no mean."
            )

    @classmethod
    def of(
        cls,
        energy: SampleEnergy,
        name: str,
        times: Tensor,
        right: Tensor,
        asked: Tensor,
        rule: str = "",
    ) -> Moment:
        """From the counts that a meter kept under a name, of samples that have a time alone."""
        missing = times.isnan()
        return cls(
            times,
            right,
            asked,
            {
                quantity: energy.operations(quantity, name).masked_fill(missing, torch.nan)
                for quantity in SAMPLE_QUANTITIES
            },
            energy.timesteps[name].masked_fill(missing, torch.nan),
            rule,
        )

    @property
    def reached(self) -> float:
        """Share that reached it of all onsets and samples asked; NaN if there is none."""
        return float((~self.times.isnan())[self.asked].double().mean())

    @property
    def time(self) -> float:
        """Mean time in ms over those that reached it; NaN if none did."""
        return float(self.times.nanmean())

    @property
    def accuracy(self) -> float:
        """Share of right answers over all asked; those that never reached it count as wrong."""
        return float(self.right[self.asked].double().mean())

    def joules(self, profile: ProfileLike) -> float:
        """Mean J from the onset through the moment, over those that reached it; NaN if none did.

        What the profile has no figure for is left out, as in `EnergyBudget.joules`.
        """
        spent = price_series(resolve_profile(profile), self.operations, self.timesteps)
        return float(spent.nanmean())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, JSON-safe; NaN becomes None."""
        return {
            "times": _plain(self.times),
            "right": self.right.tolist(),
            "asked": self.asked.tolist(),
            "operations": {name: _plain(counts) for name, counts in self.operations.items()},
            "timesteps": _plain(self.timesteps),
            "rule": self.rule,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Moment:
        """What `to_dict` wrote.

        Raises:
            DataError: if keys are missing or unknown, or shapes disagree.
        """
        if values.keys() != {field.name for field in fields(cls)}:
            raise DataError(f"A moment cannot have the keys {', '.join(sorted(values))}.")
        return cls(
            _tensor(values["times"]),
            torch.tensor(values["right"], dtype=torch.bool),
            torch.tensor(values["asked"], dtype=torch.bool),
            {name: _tensor(counts) for name, counts in values["operations"].items()},
            _tensor(values["timesteps"]),
            values["rule"],
        )


def _plain(values: Tensor) -> list[list[float | None]]:
    return [[None if math.isnan(value) else value for value in row] for row in values.tolist()]


def _tensor(rows: list[list[float | None]]) -> Tensor:
    filled = [[math.nan if value is None else value for value in row] for row in rows]
    shape = (len(rows), len(rows[0]) if rows else 0)
    return torch.tensor(filled, dtype=torch.float64).reshape(shape)
