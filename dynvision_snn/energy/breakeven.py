"""Break-even: how active a spiking model may be and still cost no more than another model.

The cost of a spiking model is taken as affine in its activity: all that spikes cause (their
synaptic operations, the spikes themselves, updates that turn active) is scaled by one factor, and
all else (updates, operations on analog values, static power) stays. So two points of that line,
the model as measured and the same model silent, give the factor at which it costs what the other
costs, whatever the price is.

``E(f) = E(0) + f * (E(1) - E(0))``, and break-even at ``f = (E_other - E(0)) / (E(1) - E(0))``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from dynvision_snn.energy.budget import EnergyBudget
from dynvision_snn.energy.hardware import ProfileLike, resolve_profile
from dynvision_snn.energy.layers import LayerCounts
from dynvision_snn.energy.pricing import si, unwarned
from dynvision_snn.errors import EnergyError

Price = ProfileLike | Callable[[EnergyBudget], float]
"""A hardware profile, or any function of a budget, such as a `MemoryModel`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BreakEven:
    """Where a spiking model stands against another one.

    Attributes:
        joules: of the spiking model, per sample.
        other_joules: of the other model, per sample.
        silent_joules: of the spiking model if nothing in it ever spiked.
        firing_rate: of the spiking model as measured, in Hz.
        spikes_per_synapse: of it as measured: spikes that arrive per synapse and sample, on the
            connections that carry spikes.
        factor: by how much its activity could grow (above 1) or must shrink (below 1) to cost the
            same; None if no activity does, because silence costs more already, or because the
            price does not depend on activity.
    """

    joules: float
    other_joules: float
    silent_joules: float
    firing_rate: float
    spikes_per_synapse: float
    factor: float | None

    @property
    def wins(self) -> bool:
        """Whether the spiking model costs less."""
        return self.joules < self.other_joules

    @property
    def break_even_firing_rate(self) -> float | None:
        """Hz at which both cost the same; None where none does."""
        return None if self.factor is None else self.factor * self.firing_rate

    @property
    def break_even_spikes_per_synapse(self) -> float | None:
        """Spikes per synapse and sample at which both cost the same; None where none does."""
        return None if self.factor is None else self.factor * self.spikes_per_synapse

    def __str__(self) -> str:
        here = (
            f"{si(self.joules, 'J')} against {si(self.other_joules, 'J')}, at "
            f"{self.firing_rate:.3g} Hz and {self.spikes_per_synapse:.3g} spikes per synapse"
        )
        if self.factor is None:
            return f"{here}; no firing rate breaks even (silence: {si(self.silent_joules, 'J')})"
        return (
            f"{here}; break-even at {self.break_even_firing_rate:.3g} Hz and "
            f"{self.break_even_spikes_per_synapse:.3g} spikes per synapse"
        )


def break_even(
    spiking: EnergyBudget,
    other: EnergyBudget | float,
    price: Price,
    *,
    other_price: Price | None = None,
) -> BreakEven:
    """The activity at which a spiking model costs what another model costs.

    Args:
        spiking: its budget.
        other: the other model's, or its J per sample. `quantised_counterpart` makes one of the
            same architecture.
        price: a hardware profile, or a function of a budget.
        other_price: what the other model runs on; by default the same.

    Raises:
        EnergyError: the spiking model has no spiking neuron, or no spike was measured; or the
            profile has no figure for synaptic operations of the other model, whose price would be
            too low to compare with; or either price is negative or not finite.

    Warns:
        EnergyWarning: a profile has no figure for some synaptic operations.
    """
    total = spiking.total
    if total.firing_rate is None or not total.spikes > 0:
        raise EnergyError(
            "break-even scales a spiking model's activity, and this one has none: "
            f"{total.spikes:g} spikes per sample."
        )
    here, silent = priced(spiking, price), priced(silenced(spiking), price)
    if isinstance(other, EnergyBudget):
        other = _whole_price(other, price if other_price is None else other_price)
    for whose, joules in (("the spiking model", here), ("the other model", other)):
        if not (math.isfinite(joules) and joules >= 0):
            raise EnergyError(
                f"{whose} costs {joules!r} J per sample; expected a finite number from 0 up."
            )
    slope = here - silent
    # Two equal sums in another order differ by their rounding: no slope at all.
    reached = slope > 1e-12 * here and other >= silent
    return BreakEven(
        joules=here,
        other_joules=float(other),
        silent_joules=silent,
        firing_rate=total.firing_rate,
        spikes_per_synapse=spikes_per_synapse(spiking),
        factor=(float(other) - silent) / slope if reached else None,
    )


def priced(budget: EnergyBudget, price: Price) -> float:
    """J per sample on a profile, or by a function of a budget."""
    return float(price(budget)) if callable(price) else float(budget.joules(price))


def _whole_price(other: EnergyBudget, price: Price) -> float:
    """The price of the other model, refused where it would leave synaptic operations out."""
    if callable(price):
        return priced(other, price)
    profile = resolve_profile(price)
    with unwarned():
        joules = other.joules(profile)
    if joules.lacks_synops:
        raise EnergyError(
            f"the other model has synaptic operations that {profile.name!r} has no figure for "
            f"({', '.join(joules.lacking)}), so that its price would be too low to break even "
            'with. Price it on hardware that has them: break_even(..., other_price="45nm-int8").'
        )
    return float(joules)


def spikes_per_synapse(budget: EnergyBudget) -> float:
    """Spikes that arrive per synapse and sample, over the connections that carry spikes.

    The measure of Davidson & Furber (2021) and Dampfhoffer et al. (2023). 0 without synapses.
    """
    rows = [row for row in budget.counts if "synops" in row.series and row.carries_spikes]
    synapses = sum(row.synapses for row in rows)
    arrived = sum(float(row.series["synops"].sum()) for row in rows) / budget.n_samples
    return arrived / synapses if synapses else 0.0


def silenced(budget: EnergyBudget) -> EnergyBudget:
    """The same measurement if nothing had spiked: updates and analog operations stay."""

    def silent(row: LayerCounts) -> LayerCounts:
        scaled = set()
        if "synops" in row.series and row.carries_spikes:
            scaled |= {"synops", "synops_weighted", "events"}
        if "spikes" in row.series:
            scaled |= {"spikes", "neuron_updates_active"}
        return replace(
            row,
            series={
                name: torch.zeros_like(counts) if name in scaled else counts
                for name, counts in row.series.items()
            },
        )

    return replace(budget, counts=[silent(row) for row in budget.counts], idle=None)


def quantised_counterpart(budget: EnergyBudget) -> EnergyBudget:
    """A non-spiking network of the same architecture, run once: every synapse one MAC.

    To be priced on a profile of the same information per activation: T timesteps of spikes carry
    about ``log2(T + 1)`` bits (Yan et al. 2024, arXiv 2409.08290), so ``"45nm-int8"`` is a
    generous match up to T of 255. Zeros are worked through, too. Its neurons have no state, so
    there are no neuron updates.

    Connections are the measured model's without its zero weights; recurrent ones are taken as one
    pass of theirs.
    """
    once = torch.full((1, 1), float(budget.n_samples), dtype=torch.float64)
    rows = [
        LayerCounts(
            **row.identity(),
            series={
                name: once * row.synapses for name in ("synops", "synops_weighted", "synops_dense")
            }
            | {"events": once * row.inputs},
            least=0.5,  # two magnitudes make a connection analog
            most=1.0,
        )
        for row in budget.counts
        if "synops" in row.series
    ]
    return EnergyBudget(
        counts=[replace(row, neurons=0, spiking_units=0) for row in rows],
        samples=once,
        dt=budget.duration,
        uncounted=budget.uncounted,
    )
