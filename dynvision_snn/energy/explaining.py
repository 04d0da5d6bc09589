"""What every number of a budget means: its definition, its source, its caveat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dynvision_snn.energy.hardware import HardwareProfile
from dynvision_snn.energy.layers import LayerCounts, LayerEnergy
from dynvision_snn.energy.pricing import Joules, si

_MEASURED = "counted by dynvision_snn, on the measured model and data"
_AGREES = (
    "counted by dynvision_snn; agrees with NeuroBench 2.3 where that counts (docs/energy.md says "
    "where it does not)"
)


@dataclass(frozen=True, slots=True)
class Note:
    """One number, and what there is to know of it.

    Attributes:
        name: as the budget or the profile calls it.
        value: the number as shown.
        definition: what it counts or measures.
        source: where it comes from.
        caveat: what it leaves out, or assumes.
    """

    name: str
    value: str
    definition: str
    source: str
    caveat: str

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.value}\n  is      {self.definition}\n  source  {self.source}\n"
            f"  caveat  {self.caveat}"
        )


class Explanation(tuple[Note, ...]):
    """Notes by number; ``str`` shows them as text, and a name looks one up."""

    __slots__ = ()

    def of(self, name: str) -> Note:
        """The note on one number.

        Raises:
            KeyError: there is none of that name.
        """
        for note in self:
            if note.name == name:
                return note
        raise KeyError(name)

    def __str__(self) -> str:
        return "\n".join(map(str, self))


_DEFINITIONS: Mapping[str, tuple[str, str, str]] = {
    "neurons": (
        "neurons with state, per sample",
        _MEASURED,
        "Activations without state (ReLU) are no neurons here.",
    ),
    "synapses": (
        "connections with a nonzero weight; a shared weight once per place where it acts",
        _MEASURED,
        "Of the weights as they were last seen; biases are none.",
    ),
    "spikes": (
        "nonzero outputs of spiking layers, per sample",
        _MEASURED,
        "A graded spike counts as one. Input spikes are no layer's and are not among them.",
    ),
    "firing_rate": (
        "spikes per unit that can spike and second of simulated time, in Hz",
        _MEASURED,
        "Simulated time, not a chip's; idle time is apart.",
    ),
    "synops_ac": (
        "products of a nonzero value and a nonzero weight, on connections that carry spikes: all "
        "nonzero values had one common magnitude in the whole measurement",
        _AGREES,
        "Spikes of another magnitude than 1 are taken as 1 with the magnitude folded into the "
        "weights.",
    ),
    "synops_mac": (
        "products of a nonzero value and a nonzero weight, on connections that carry analog values",
        _AGREES,
        "One analog value makes all of a connection's operations MACs.",
    ),
    "synops_weighted": (
        "synaptic operations weighted by the magnitude of the value",
        "sinabs' definition; agrees with it where weights are nonzero and padding is zeros",
        "A measure of activity, not of operations that hardware performs.",
    ),
    "synops_dense": (
        "every input times every weight at every timestep, zero or not",
        _AGREES,
        "What hardware that gains nothing from zeros would do.",
    ),
    "neuron_updates": (
        "state updates: one per neuron with state and timestep",
        _MEASURED,
        "Elementwise products inside a neuron (leak, gates of an LSTM) are part of its update and "
        "no synaptic operations.",
    ),
    "neuron_updates_active": (
        "updates whose output was nonzero",
        _MEASURED,
        "Chips' papers do not define an active update; simulators also count neurons that "
        "received a spike.",
    ),
}

_TERMS: Mapping[str, str] = {
    "ac": "energy of a synaptic operation on a spike",
    "mac": "energy of a synaptic operation on an analog value",
    "neuron_update_active": "energy of an active neuron update",
    "neuron_update_inactive": "energy of an inactive neuron update",
    "spike": "energy of sending a spike",
    "static": "static power times hardware time",
}


def notes_on_counts(
    total: LayerEnergy, rows: Sequence[LayerCounts], uncounted: Mapping[str, str]
) -> Iterator[Note]:
    """A note on every count of a budget's total, with what was found of this measurement."""
    for name, (definition, source, caveat) in _DEFINITIONS.items():
        value = getattr(total, name)
        shown = "-" if value is None else f"{value:,.6g}"
        if name in ("synops_ac", "synops_mac"):
            caveat = " ".join([caveat, *_evidence(rows, name == "synops_ac")])
        if name in ("firing_rate", "neuron_updates_active"):
            caveat = " ".join([caveat, *_sharing(rows)])
        yield Note(name, shown, definition, source, caveat)
    for layer, reason in uncounted.items():
        yield Note(
            f"uncounted {layer or '(model)'}",
            "not counted",
            "a layer whose operations are in no number above",
            _MEASURED,
            f"{reason}; every sum is a lower bound",
        )


def _evidence(rows: Sequence[LayerCounts], spiking: bool) -> Iterator[str]:
    for row in rows:
        if "synops" not in row.series or row.carries_spikes != spiking:
            continue
        name = row.name or "(model)"
        if row.most == 0:
            yield f"{name} received nothing."
        elif spiking:
            yield f"{name} received values of magnitude {row.most:g} alone."
        else:
            yield f"{name} received magnitudes from {row.least:.3g} to {row.most:.3g}."


def _sharing(rows: Sequence[LayerCounts]) -> Iterator[str]:
    for row in rows:
        if 0 < row.spiking_units < row.neurons:
            yield (
                f"The {row.neurons:,} neurons of {row.name or '(model)'} share "
                f"{row.spiking_units:,} outputs that spike; a spike makes one update active."
            )


def notes_on_joules(profile: HardwareProfile, joules: Joules) -> Iterator[Note]:
    """A note on the joules of one profile, and on each of its terms."""
    caveats = " ".join(profile.caveats) or "none given"
    yield Note(
        f"joules {profile.name}",
        str(joules),
        "energy per sample: operations times energy per operation, term by term",
        f"{profile.source} ({profile.basis})",
        caveats,
    )
    for term, value in joules.terms.items():
        yield Note(
            f"joules {profile.name} {term}",
            si(value, "J"),
            _TERMS[term],
            f"{profile.source} ({profile.basis})",
            "what the counts it is made of leave out, it leaves out",
        )
    for term, count in joules.lacking.items():
        yield Note(
            f"joules {profile.name} {term}",
            "lacking",
            _TERMS[term],
            f"{profile.source} ({profile.basis})",
            f"the profile has no figure, so {count:,.6g} operations are left out of its joules",
        )
