"""The energy budget: every count of a measurement by layer, phase and timestep, and its price.

A budget keeps what was measured (sums over samples and the evidence on what each connection
carried) and derives what it shows, so that two budgets add up to the budget of both measurements
exactly. Definitions are in `dynvision_snn.energy.layers`, joules in `dynvision_snn.energy.pricing`.

Conservation: layers sum to the total, and so do timesteps and phases. Idle time is a budget of
its own, in no total.

One class, with what it documents, makes the file long.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, overload

import torch
from torch import Tensor

from dynvision_snn.energy.explaining import Explanation, notes_on_counts, notes_on_joules
from dynvision_snn.energy.hardware import HardwareProfile, ProfileLike, resolve_profile
from dynvision_snn.energy.layers import (
    QUANTITIES,
    LayerCounts,
    LayerEnergy,
    Quantity,
    table,
)
from dynvision_snn.energy.pricing import Joules, price, price_series
from dynvision_snn.energy.showing import layer_grid
from dynvision_snn.energy.sums import Extent
from dynvision_snn.errors import EnergyError, EnergyWarning, known_names
from dynvision_snn.report.markup import to_html
from dynvision_snn.timing import format_steps

SCHEMA = 3
"""Version of `EnergyBudget.to_dict`'s layout."""

STATIC_ROW = "static power"
"""The row that static power has beside the layers; no module can have this name."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EnergyBudget:
    """What a model did per sample, by layer and timestep.

    Attributes:
        counts: the layers as measured, in the model's order.
        samples: ``[phases, T]``, how many samples were in which phase at which timestep; one
            row where phases are not known.
        dt: timestep in ms.
        phases: names of the rows of `samples` and of every series (``"null"``, ``"reaction"``,
            ``"supervised"``).
        uncounted: layers that could not be counted, and why.
        idle: the budget of idle time, which is in no total; None where there was none.
        extent: of a budget that was not kept by timestep; `samples` and every series then have one
            column, the sum over all timesteps.

    Raises:
        EnergyError: nothing observed, a dt that is no positive number, names twice, or shapes
            that disagree.
    """

    counts: Sequence[LayerCounts]
    samples: Tensor
    dt: float
    phases: Sequence[str] = ("unknown",)
    uncounted: Mapping[str, str] = field(default_factory=dict)
    idle: EnergyBudget | None = None
    extent: Extent | None = None

    def __post_init__(self) -> None:
        samples = self.samples.detach().to("cpu", torch.float64)
        object.__setattr__(self, "samples", samples)
        object.__setattr__(self, "counts", tuple(self.counts))
        object.__setattr__(self, "phases", tuple(self.phases))
        object.__setattr__(self, "uncounted", dict(self.uncounted))
        if not (math.isfinite(self.dt) and self.dt > 0):
            raise EnergyError(f"dt is a positive number of ms; got {self.dt!r}.")
        if samples.ndim != 2 or samples.shape[0] != len(self.phases):
            raise EnergyError(
                f"samples has shape {list(samples.shape)}; expected [{len(self.phases)}, T] for "
                f"the phases {', '.join(self.phases)}."
            )
        if not bool(samples.sum() > 0):
            raise EnergyError(
                "No timestep was observed, so there is nothing to budget. Call the model first."
            )
        if self.extent is not None and samples.shape[1] != 1:
            raise EnergyError(
                "A budget that was not kept by timestep has one column, the sum of "
                f"{format_steps(self.extent.n_timesteps, self.dt)}; got {samples.shape[1]}."
            )
        _refuse_duplicates("phase", self.phases)
        _refuse_duplicates("layer", [layer.name for layer in self.counts])
        for layer in self.counts:
            for key, values in layer.series.items():
                if values.shape != samples.shape:
                    raise EnergyError(
                        f"Layer {layer.name!r}: {key} has shape {list(values.shape)}, but the "
                        f"samples have {list(samples.shape)}."
                    )

    @property
    def n_samples(self) -> int:
        """Samples measured: the summed batch sizes of all runs.

        Runs that go on from each other (``state=``, chunks) are at later timesteps of the same
        samples; so it is the largest sum at any timestep.
        """
        return int(self.samples.sum(0).amax()) if self.extent is None else self.extent.n_samples

    @property
    def n_timesteps(self) -> int:
        """Timesteps of the longest run."""
        return self.samples.shape[1] if self.extent is None else self.extent.n_timesteps

    @property
    def duration(self) -> float:
        """Simulated time of the longest run, in ms."""
        return self.n_timesteps * self.dt

    @cached_property
    def layers(self) -> tuple[LayerEnergy, ...]:
        """A row per layer, in the model's order; means per sample."""
        return tuple(self._row(layer.name, layer.kind, [layer]) for layer in self.counts)

    @cached_property
    def total(self) -> LayerEnergy:
        """The sum of all layers. Its firing rate is over the spiking units of all."""
        return self._row("total", "", self.counts)

    def by_timestep(self, quantity: str, layer: str | None = None) -> Tensor:
        """Counts per sample at every timestep; they sum to the total.

        Args:
            quantity: a count of `LayerEnergy`, or ``"firing_rate"`` in Hz (which does not sum,
                and is NaN where no sample was or nothing can spike).
            layer: one layer instead of all.

        Returns:
            float64 ``[T]``. Where runs had different lengths, divided by all samples.

        Raises:
            EnergyError: an unknown quantity or layer, or a budget that was not kept by timestep.
        """
        if self.extent is not None:
            raise EnergyError(
                "this budget was not kept by timestep. Measure again with by_timestep=True, or ask "
                "for by_phase."
            )
        return self._marginal(quantity, layer, axis=0)

    def by_phase(self, quantity: str, layer: str | None = None) -> dict[str, float]:
        """Counts per sample in every phase; they sum to the total. Arguments as `by_timestep`.

        Idle time is apart: ``budget.idle``.
        """
        values = self._marginal(quantity, layer, axis=1).tolist()
        return dict(zip(self.phases, values, strict=True))

    @overload
    def joules(self, profile: ProfileLike, by: None = None) -> Joules: ...
    @overload
    def joules(self, profile: ProfileLike, by: Literal["layer", "phase"]) -> dict[str, Joules]: ...
    @overload
    def joules(self, profile: ProfileLike, by: Literal["term"]) -> dict[str, float]: ...
    @overload
    def joules(self, profile: ProfileLike, by: Literal["timestep"]) -> Tensor: ...
    def joules(
        self,
        profile: ProfileLike,
        by: Literal["layer", "phase", "timestep", "term"] | None = None,
    ) -> Joules | dict[str, Joules] | dict[str, float] | Tensor:
        """Energy per sample on a hardware profile.

        What the profile has no figure for is left out, never priced as something else; the
        result says so (`Joules.lacking`, and in print).

        Args:
            profile: a name of `hardware_profiles()`, a `HardwareProfile`, or its fields.
            by: None for the sum; ``"layer"`` and ``"phase"`` for a dict of sums; ``"timestep"``
                for float64 ``[T]`` in J; ``"term"`` for J by term of the profile. Each sums to
                the whole. Static power, where the profile prices it, is a row and a term of its
                own.

        Raises:
            EnergyError: an unknown profile or `by`.

        Warns:
            EnergyWarning: synaptic operations are left out, as a spiking chip's profile has no
                figure for a MAC: the number is a lower bound that says little.
        """
        priced = resolve_profile(profile)
        whole = self._price(priced, self._counts_by(self.counts), self.samples.sum())
        if whole.lacks_synops:
            warnings.warn(
                f"The profile {priced.name!r} has no figure for some of these synaptic "
                f"operations: {whole}. The number is a lower bound; do not compare it.",
                EnergyWarning,
                stacklevel=2,
            )
        match by:
            case None:
                return whole
            case "term":
                return whole.terms
            case "timestep":
                counts: dict[str, Tensor] = {q: self.by_timestep(q) for q in QUANTITIES}
                return price_series(priced, counts, self.samples.sum(0) / self.n_samples)
            case "layer":
                rows = {
                    layer.name: price(priced, self._counts_by([layer])) for layer in self.counts
                }
                if "static" in whole.terms:
                    rows[STATIC_ROW] = Joules({"static": whole.terms["static"]}, priced)
                return rows
            case "phase":
                return {
                    phase: self._price(
                        priced, self._counts_by(self.counts, p), self.samples[p].sum()
                    )
                    for p, phase in enumerate(self.phases)
                }
        known = ("layer", "phase", "timestep", "term")
        raise EnergyError(f"Joules by {by!r} is unknown. {known_names(str(by), known)}")

    def explain(self, *profiles: ProfileLike) -> Explanation:
        """Definition, source and caveat of every number shown, and of joules on `profiles`.

        Raises:
            EnergyError: an unknown profile.

        Warns:
            EnergyWarning: as `joules`.
        """
        notes = [*notes_on_counts(self.total, self.counts, self.uncounted)]
        for profile in profiles:
            notes += notes_on_joules(resolve_profile(profile), self.joules(profile))
        return Explanation(notes)

    def __add__(self, other: EnergyBudget) -> EnergyBudget:
        """The budget of both measurements, as if they had been one.

        Raises:
            EnergyError: different dt, or layers that are not the same.
        """
        if not isinstance(other, EnergyBudget):
            return NotImplemented
        if not math.isclose(self.dt, other.dt, rel_tol=1e-9):
            raise EnergyError(
                f"Budgets at dt {self.dt} ms and {other.dt} ms do not add up; measure at one dt."
            )
        mine, theirs = ([layer.name for layer in b.counts] for b in (self, other))
        if mine != theirs:
            raise EnergyError(
                f"Budgets of different layers do not add up: {', '.join(mine) or 'none'}; and "
                f"{', '.join(theirs) or 'none'}."
            )
        if (self.extent is None) != (other.extent is None):
            raise EnergyError(
                "A budget that was kept by timestep and one that was not do not add up; measure "
                "both with the same by_timestep=."
            )
        phases = tuple(dict.fromkeys((*self.phases, *other.phases)))
        timesteps = max(self.samples.shape[1], other.samples.shape[1])
        a, b = (budget._padded(phases, timesteps) for budget in (self, other))
        idle = [budget.idle for budget in (self, other) if budget.idle is not None]
        return EnergyBudget(
            counts=[x.merged(y) for x, y in zip(a.counts, b.counts, strict=True)],
            samples=a.samples + b.samples,
            dt=self.dt,
            phases=phases,
            uncounted={**other.uncounted, **self.uncounted},
            idle=idle[0] + idle[1] if len(idle) == 2 else next(iter(idle), None),
            extent=None
            if self.extent is None or other.extent is None
            else self.extent + other.extent,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, JSON-safe, that `from_dict` takes back without loss."""
        return {
            "schema": SCHEMA,
            "dt": self.dt,
            "phases": list(self.phases),
            "samples": self.samples.tolist(),
            "layers": [layer.to_dict() for layer in self.counts],
            "uncounted": dict(self.uncounted),
            "idle": None if self.idle is None else self.idle.to_dict(),
            "extent": None if self.extent is None else asdict(self.extent),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EnergyBudget:
        """The budget that `to_dict` wrote.

        Raises:
            EnergyError: another schema version, or keys that are missing or unknown.
        """
        if values.get("schema") != SCHEMA:
            raise EnergyError(
                f"An energy budget of schema {values.get('schema')!r} cannot be read; this "
                f"version reads schema {SCHEMA}."
            )
        expected = {"schema", "dt", "phases", "samples", "layers", "uncounted", "idle", "extent"}
        if values.keys() != expected:
            raise EnergyError(
                f"An energy budget has the keys {', '.join(sorted(expected))}; got "
                f"{', '.join(sorted(values))}."
            )
        return cls(
            counts=[LayerCounts.from_dict(layer) for layer in values["layers"]],
            samples=torch.tensor(values["samples"], dtype=torch.float64),
            dt=values["dt"],
            phases=values["phases"],
            uncounted=values["uncounted"],
            idle=None if values["idle"] is None else cls.from_dict(values["idle"]),
            extent=None if values["extent"] is None else Extent(**values["extent"]),
        )

    def __str__(self) -> str:
        head = (
            f"Energy budget per sample: {self.n_samples} samples, {self.duration:g} ms = "
            f"{self.n_timesteps} timesteps of {self.dt:g} ms"
        )
        lines = [head, *table([*self.layers, self.total])]
        lines += [f"uncounted: {name} ({reason})" for name, reason in self.uncounted.items()]
        if self.idle is not None:
            lines.append(f"idle time apart: {self.idle.duration:g} ms, in no total")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return (
            f"<EnergyBudget of {len(self.counts)} layers, {self.n_samples} samples, "
            f"{self.duration:g} ms = {self.n_timesteps} timesteps of {self.dt:g} ms>"
        )

    def _repr_html_(self) -> str:
        grid = layer_grid([*self.layers, self.total], self.uncounted)
        return to_html(grid, title=str(self).partition("\n")[0])

    def _row(self, name: str, kind: str, layers: Sequence[LayerCounts]) -> LayerEnergy:
        counts = self._counts_by(layers)
        spiking = sum(layer.spiking_units for layer in layers)
        seconds = float(self.samples.sum()) * self.dt * 1e-3 / self.n_samples
        return LayerEnergy(
            name=name,
            kind=kind,
            neurons=sum(layer.neurons for layer in layers),
            synapses=sum(layer.synapses for layer in layers),
            firing_rate=counts["spikes"] / (spiking * seconds) if spiking else None,
            **counts,
        )

    def _counts_by(
        self, layers: Sequence[LayerCounts], phase: int | None = None
    ) -> dict[str, float]:
        """Per sample, of some layers, in one phase or all."""
        rows = slice(None) if phase is None else phase
        return {
            quantity: float(self._sum(quantity, layers)[rows].sum()) / self.n_samples
            for quantity in QUANTITIES
        }

    def _sum(self, quantity: Quantity, layers: Sequence[LayerCounts]) -> Tensor:
        total = torch.zeros_like(self.samples)
        for layer in layers:
            values = layer.quantity(quantity)
            if values is not None:
                total = total + values
        return total

    def _marginal(self, quantity: str, layer: str | None, axis: int) -> Tensor:
        layers = self.counts if layer is None else [self._layer(layer)]
        if quantity == "firing_rate":
            spiking = sum(x.spiking_units for x in layers)
            seconds = self.samples.sum(axis) * self.dt * 1e-3
            return self._sum("spikes", layers).sum(axis) / (spiking * seconds)
        if quantity not in QUANTITIES:
            known = (*QUANTITIES, "firing_rate")
            raise EnergyError(f"Unknown quantity {quantity!r}. {known_names(quantity, known)}")
        return self._sum(quantity, layers).sum(axis) / self.n_samples

    def _layer(self, name: str) -> LayerCounts:
        for layer in self.counts:
            if layer.name == name:
                return layer
        known = known_names(name, [layer.name for layer in self.counts])
        raise EnergyError(f"Unknown layer {name!r}. {known}")

    def _price(
        self, profile: HardwareProfile, counts: Mapping[str, float], exposure: Tensor
    ) -> Joules:
        timesteps = float(exposure) / self.n_samples
        return price(profile, counts, timesteps=timesteps, uncounted=tuple(self.uncounted))

    def _padded(self, phases: Sequence[str], timesteps: int) -> EnergyBudget:
        """The same counts with rows for `phases` and columns for `timesteps`, zeros added."""

        def pad(values: Tensor) -> Tensor:
            wide = values.new_zeros(len(phases), timesteps)
            for row, phase in zip(values, self.phases, strict=True):
                wide[phases.index(phase), : len(row)] = row
            return wide

        padded = [
            LayerCounts(
                **layer.identity(),
                series={key: pad(values) for key, values in layer.series.items()},
                least=layer.least,
                most=layer.most,
            )
            for layer in self.counts
        ]
        return EnergyBudget(counts=padded, samples=pad(self.samples), dt=self.dt, phases=phases)


def _refuse_duplicates(what: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise EnergyError(f"Every {what} has one row; got {', '.join(twice)} more than once.")
