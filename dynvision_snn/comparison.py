"""compare(): several models on the same data and presentation, side by side."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dynvision_snn.energy import Joules, resolve_profile
from dynvision_snn.energy.pricing import TERM_NAMES
from dynvision_snn.errors import ComparisonError, EnergyWarning
from dynvision_snn.model import TimedModel
from dynvision_snn.presentation import Presentation
from dynvision_snn.report.figure import model_styles, save_figure
from dynvision_snn.report.files import check_free, write_text, writing_folder
from dynvision_snn.report.plots import (
    accuracy_over_time,
    energy_by_layer,
)
from dynvision_snn.report.tables import Column, Noted, lay_out, to_text
from dynvision_snn.simulation import Simulation, simulate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 1
"""Version of `Comparison.to_dict`'s layout."""

DEFAULT_PROFILES = ("45nm-fp32",)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Simulations of several models on the same data and presentation.

    Attributes:
        simulations: by the model's name, in the order in which they are shown.
        profiles: names of the hardware profiles that energies are shown for; the first is drawn.

    Raises:
        ComparisonError: if there is none, or they differ in samples or presentation.
        EnergyError: for an unknown profile.
    """

    simulations: Mapping[str, Simulation]
    profiles: Sequence[str] = DEFAULT_PROFILES

    def __post_init__(self) -> None:
        if not self.simulations:
            raise ComparisonError("a comparison needs at least one model; received none.")
        if not self.profiles:
            raise ComparisonError("a comparison needs at least one hardware profile.")
        for name in self.profiles:
            resolve_profile(name)
        first_name, first = next(iter(self.simulations.items()))
        for name, simulation in self.simulations.items():
            for what in ("presentation", "n_samples"):
                theirs, ours = getattr(simulation, what), getattr(first, what)
                if theirs != ours:
                    raise ComparisonError(
                        f"{name!r} and {first_name!r} differ in {what}: {theirs} and {ours}. "
                        "Simulate them with the same loader and presentation."
                    )

    @property
    def presentation(self) -> Presentation:
        """The schedule that all models saw."""
        return next(iter(self.simulations.values())).presentation

    def rows(self) -> list[dict[str, Any]]:
        """One plain row per model: accuracies as shares, times in ms, counts and J per sample."""
        rows = []
        for name, simulation in self.simulations.items():
            total = simulation.budget.total
            row: dict[str, Any] = {
                "model": name,
                "accuracy": simulation.accuracy,
                "accuracy_last": simulation.accuracy_last,
                "settling_time": simulation.settling_time,
                "firing_rate": total.firing_rate,
                "spikes": total.spikes,
                "synops_ac": total.synops_ac,
                "synops_mac": total.synops_mac,
                "neuron_updates": total.neuron_updates,
                "n_parameters": simulation.n_parameters,
                "uncounted": ", ".join(simulation.budget.uncounted),
            }
            row |= {f"joules_{p}": _joules(simulation, p) for p in self.profiles}
            rows.append(row)
        return rows

    def table(self, width: int = 80) -> str:
        """The comparison as a text table, its energies with their sources.

        Raises:
            MissingExtraError: if rich is not installed.
        """
        rows = [self._noted(row) for row in self.rows()]
        columns = [
            Column("model", "model"),
            Column("accuracy_last", "accuracy, last", "%", decimals=1),
            Column("accuracy", "accuracy, all", "%", decimals=1),
            Column("settling_time", "settling", "ms", decimals=1),
            Column("firing_rate", "rate", "Hz", decimals=1),
            Column("synops_ac", "ACs", decimals=0),
            Column("synops_mac", "MACs", decimals=0),
            Column("neuron_updates", "neuron updates", decimals=0),
            *(
                Column(f"joules_{p}", "energy", "J", si=True, note=self._priced_by(p))
                for p in self.profiles
            ),
        ]
        if any(row["uncounted"] for row in rows):
            columns.append(Column("uncounted", "not counted"))
        some = next(iter(self.simulations.values()))
        notes = [
            f"{some.n_samples} samples, each {self.presentation.describe()}.",
            "Counts and energies per sample. Accuracy at the last and over all supervised "
            "timesteps; settling from each onset, in hindsight.",
        ]
        return to_text(lay_out(rows, columns, notes=notes), title=self._title(), width=width)

    def __str__(self) -> str:
        return self.table()

    def plot(self) -> dict[str, Figure]:
        """The figures by name: ``"accuracy"`` over time, and ``"energy"`` by layer.

        Raises:
            MissingExtraError: if matplotlib is not installed.
        """
        styles = model_styles(self.simulations)
        profile = self.profiles[0]
        accuracy = accuracy_over_time(
            {n: s.accuracy_by_timestep.tolist() for n, s in self.simulations.items()},
            dt=self.presentation.dt,
            intervals=self.presentation.intervals(),
            stimuli=self.presentation.stimulus_intervals(),
            title="Accuracy over time",
            styles=styles,
        )
        energy = energy_by_layer(
            self._energy_rows(profile),
            title="Energy by layer",
            note=self._priced_by(profile),
            styles=styles,
        )
        return {"accuracy": accuracy, "energy": energy}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, JSON-safe."""
        return {
            "schema": SCHEMA,
            "profiles": list(self.profiles),
            "simulations": {n: s.to_dict() for n, s in self.simulations.items()},
        }

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Writes the comparison, whole or not at all.

        Args:
            path: a file that ends in ``.json``; or else a folder, for ``comparison.json``,
                ``table.txt`` and the figures as PNG.
            force: whether what is there may be overwritten.

        Raises:
            OutputError: if it exists already and `force` is not set, or cannot be written.
            MissingExtraError: for a folder without rich and matplotlib.
        """
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        if Path(path).suffix == ".json":
            write_text(path, text, force=force)
            return
        check_free(path, force=force)
        with writing_folder(path, force=force) as folder:
            write_text(folder / "comparison.json", text)
            write_text(folder / "table.txt", self.table())
            for name, figure in self.plot().items():
                save_figure(figure, folder / f"{name}.png")

    def _title(self) -> str:
        return f"{len(self.simulations)} models" if len(self.simulations) > 1 else "1 model"

    def _noted(self, row: Mapping[str, Any]) -> dict[str, Any]:
        noted = dict(row)
        for profile in self.profiles:
            joules: Joules = row[f"joules_{profile}"]
            if joules.lacks_synops:
                noted[f"joules_{profile}"] = Noted(
                    None, "Not priced: the profile has no figure for MACs on analog values."
                )
        return noted

    def _energy_rows(self, profile: str) -> Iterator[dict[str, Any]]:
        for name, simulation in self.simulations.items():
            for layer, joules in _quietly(simulation, profile, "layer").items():
                if joules:
                    yield {"model": name, "layer": layer, "joules": float(joules)}
            for layer in simulation.budget.uncounted:
                yield {"model": name, "layer": layer, "joules": None}

    def _priced_by(self, profile: str) -> str:
        return f"{_source(profile)} {self._lacking(profile)}".strip()

    def _lacking(self, profile: str) -> str:
        lacking = {term for s in self.simulations.values() for term in _joules(s, profile).lacking}
        names = [TERM_NAMES[term] for term in TERM_NAMES if term in lacking]
        return f"It has no figure for {', '.join(names)}: left out." if names else ""


def compare(
    models: Mapping[str, TimedModel],
    loader: Iterable[tuple[Tensor, Tensor]],
    presentation: Presentation,
    *,
    profiles: Sequence[str] = DEFAULT_PROFILES,
    progress: bool | None = None,
) -> Comparison:
    """Runs several models on the same data and presentation.

    Args:
        models: wrapped models by name.
        loader: batches of images and labels; gone through once per model, so it must give the same
            samples each time (a DataLoader, a list).
        presentation: the schedule, shared by all.
        profiles: hardware profiles that energies are shown for.
        progress: whether progress bars are shown; by default on a terminal.

    Raises:
        ComparisonError: if there is no model, or the loader gave the models different samples.
    """
    return Comparison(
        {
            name: simulate(model, loader, presentation, progress=progress, title=name)
            for name, model in models.items()
        },
        profiles,
    )


def _joules(simulation: Simulation, profile: str) -> Joules:
    joules: Joules = _quietly(simulation, profile, None)
    return joules


def _quietly(simulation: Simulation, profile: str, by: Any) -> Any:
    """Joules whose gaps the caller shows, so that nobody needs to be warned of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EnergyWarning)
        return simulation.budget.joules(profile, by=by)


def _source(profile: str) -> str:
    known = resolve_profile(profile)
    return f"{known.name} ({known.basis}): {known.source}."
