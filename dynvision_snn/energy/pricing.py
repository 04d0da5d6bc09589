"""From counts to joules: energy per operation times operations, term by term.

Dimensions: J/operation * operations/sample = J/sample, and for static power
W * s/timestep * timesteps/sample = J/sample.

A term that a profile has no figure for is never priced as another one. Its operations are listed
as lacking, and the sum is a lower bound.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor

from dynvision_snn.energy.hardware import HardwareProfile
from dynvision_snn.errors import EnergyWarning

Amount = TypeVar("Amount", float, Tensor)

SYNAPTIC: frozenset[str] = frozenset({"ac", "mac"})
"""The terms without which a sum says little about a network."""

TERM_NAMES: Mapping[str, str] = {
    "ac": "ACs",
    "mac": "MACs",
    "neuron_update_active": "active neuron updates",
    "neuron_update_inactive": "inactive neuron updates",
    "spike": "spikes",
}


class Joules(float):
    """Energy per sample on one profile; a float that remembers what it contains and lacks.

    Arithmetic gives plain floats. ``str`` and ``repr`` show what is left out.

    Attributes:
        profile: the hardware profile it was priced with.
        terms: J per sample by term; they sum to the value.
        lacking: operations per sample that the profile has no figure for, by term.
        uncounted: layers whose operations were not counted in the first place.
    """

    profile: HardwareProfile
    terms: dict[str, float]
    lacking: dict[str, float]
    uncounted: tuple[str, ...]

    def __new__(
        cls,
        terms: Mapping[str, float],
        profile: HardwareProfile,
        lacking: Mapping[str, float] = {},
        uncounted: tuple[str, ...] = (),
    ) -> Joules:
        """The sum of `terms`, with what it was made of."""
        self = super().__new__(cls, sum(terms.values()))
        self.profile = profile
        self.terms = dict(terms)
        self.lacking = dict(lacking)
        self.uncounted = tuple(uncounted)
        return self

    @property
    def complete(self) -> bool:
        """Whether the profile prices everything that happened, in every layer."""
        return not self.lacking and not self.uncounted

    @property
    def lacks_synops(self) -> bool:
        """Whether synaptic operations are left out of the value."""
        return not SYNAPTIC.isdisjoint(self.lacking)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.terms, self.profile, self.lacking, self.uncounted)

    def __str__(self) -> str:
        left_out = [f"{count:,.6g} {TERM_NAMES[term]}" for term, count in self.lacking.items()]
        if self.uncounted:
            left_out.append(f"the uncounted {', '.join(self.uncounted)}")
        at_least = "at least " if left_out else ""
        without = f"; without {', '.join(left_out)}" if left_out else ""
        profile = f"{self.profile.name}, {self.profile.basis}"
        return f"{at_least}{si(float(self), 'J')} ({profile}{without})"

    def __repr__(self) -> str:
        return f"<Joules {self}>"

    def __format__(self, spec: str) -> str:
        return format(float(self), spec) if spec else str(self)


@contextmanager
def unwarned() -> Iterator[None]:
    """Prices without the warning of what they lack, which whoever asks for them sees to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EnergyWarning)
        yield


def operations(profile: HardwareProfile, counts: Mapping[str, Amount]) -> dict[str, Amount]:
    """What a profile would price, by term.

    Args:
        profile: decides whether synapses are driven by events or worked at every timestep.
        counts: ``synops_ac``, ``synops_mac``, ``synops_dense``, ``neuron_updates``,
            ``neuron_updates_active`` and ``spikes``, numbers or tensors of one shape.
    """
    synaptic: dict[str, Amount] = (
        {"ac": counts["synops_ac"], "mac": counts["synops_mac"]}
        if profile.event_driven
        else {"mac": counts["synops_dense"]}
    )
    active = counts["neuron_updates_active"]
    return {
        **synaptic,
        "neuron_update_active": active,
        "neuron_update_inactive": counts["neuron_updates"] - active,
        "spike": counts["spikes"],
    }


def price(
    profile: HardwareProfile,
    counts: Mapping[str, float],
    *,
    timesteps: float = 0.0,
    uncounted: tuple[str, ...] = (),
) -> Joules:
    """Joules of counts per sample.

    Args:
        profile: the energies.
        counts: as in `operations`, per sample.
        timesteps: timesteps per sample that static power is drawn for.
        uncounted: names of layers that the counts leave out.
    """
    terms: dict[str, float] = {}
    lacking: dict[str, float] = {}
    for term, count in operations(profile, counts).items():
        energy = profile.energies[term]
        if energy is not None:
            terms[term] = energy * count
        elif count > 0:
            lacking[term] = count
    if profile.static_energy is not None and timesteps > 0:
        terms["static"] = profile.static_energy * timesteps
    return Joules(terms, profile, lacking, uncounted)


def price_series(
    profile: HardwareProfile, counts: Mapping[str, Tensor], timesteps: Tensor
) -> Tensor:
    """The value of `price` at every timestep: counts and timesteps per sample, each ``[T]``."""
    static = profile.static_energy or 0.0
    joules = static * timesteps
    for term, count in operations(profile, counts).items():
        joules = joules + (profile.energies[term] or 0.0) * count
    return joules


def si(value: float, unit: str) -> str:
    """Four significant digits and an SI prefix.

    >>> si(1.25e-6, "J")
    '1.25 µJ'
    """
    if value == 0:
        return f"0 {unit}"
    for factor, prefix in ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n")):
        if abs(value) >= factor:
            return f"{value / factor:.4g} {prefix}{unit}"
    return f"{value / 1e-12:.4g} p{unit}"
