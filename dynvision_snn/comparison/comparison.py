"""compare(): several models on the same data and presentation, side by side."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import nn

from dynvision_snn.comparison import drawing, saving, telling
from dynvision_snn.comparison.differences import differences
from dynvision_snn.decision import DecisionRule, SoftmaxConfidence
from dynvision_snn.energy import HardwareProfile, resolve_profile
from dynvision_snn.energy.budget import ProfileLike
from dynvision_snn.errors import ComparisonError, DynvisionError, known_names
from dynvision_snn.evidence import Decoding
from dynvision_snn.model import TimedModel
from dynvision_snn.report.figure import WIDTH
from dynvision_snn.report.markup import to_html
from dynvision_snn.report.values import to_pandas
from dynvision_snn.simulation import Simulation, simulate
from dynvision_snn.sources import PresentationSource

if TYPE_CHECKING:
    from dynvision_snn.report.figure import Figure
    from dynvision_snn.report.values import DataFrame

SCHEMA = 4
"""Version of `Comparison.to_dict`'s layout."""

DEFAULT_PROFILES = ("45nm-fp32",)

DEFAULT_RULES: Mapping[str, DecisionRule] = MappingProxyType(
    {f"confidence {c:.0%}": SoftmaxConfidence(c) for c in (0.9, 0.5, 0.7, 0.99)}
)
"""When an answer counts as decided; tables show the first one."""


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Simulations of several models.

    Those of one model, its runs (seeds, checkpoints), are of the same data and presentation; where
    models differ in these, every output says so.

    Attributes:
        runs: simulations by the model's name, in the order in which they are shown; one or several
            of each model.
        profiles: hardware profiles that energies are shown for, by name or in full; the first is
            drawn.
        baseline: name of the model that the others are set against; None for none.
        name: what files are called by; empty for none.
        remarks: what else must be said above the table.

    Raises:
        ComparisonError: if there is no model or profile, two profiles share a name, the baseline
            is unknown, or a model's runs do not belong together.
        EnergyError: for an unknown profile.
    """

    runs: Mapping[str, Sequence[Simulation]]
    profiles: Sequence[HardwareProfile]
    baseline: str | None = None
    name: str = ""
    remarks: Sequence[str] = ()

    def __init__(
        self,
        runs: Mapping[str, Simulation | Sequence[Simulation]],
        profiles: Sequence[ProfileLike] = DEFAULT_PROFILES,
        *,
        baseline: str | None = None,
        name: str = "",
        remarks: Sequence[str] = (),
    ) -> None:
        listed = {
            str(model): (given,) if isinstance(given, Simulation) else tuple(given)
            for model, given in runs.items()
        }
        settled = {
            "runs": listed,
            "profiles": tuple(resolve_profile(profile) for profile in profiles),
            "baseline": baseline,
            "name": name,
            "remarks": tuple(remarks),
        }
        for key, value in settled.items():
            object.__setattr__(self, key, value)
        self._check()

    def _check(self) -> None:
        if not self.runs or not all(self.runs.values()):
            raise ComparisonError(
                "a comparison needs at least one model, with at least one run of each."
            )
        names = [profile.name for profile in self.profiles]
        if not names or len(set(names)) < len(names):
            raise ComparisonError(
                "a comparison needs at least one hardware profile, each once; received "
                f"{', '.join(names) or 'none'}."
            )
        if self.baseline is not None and self.baseline not in self.runs:
            raise ComparisonError(
                f"the baseline {self.baseline!r} is none of the models. "
                f"{known_names(self.baseline, self.runs)}"
            )
        for name, (first, *others) in self.runs.items():
            for other in others:
                _check_same_model(name, first, other)

    @property
    def differences(self) -> list[str]:
        """What differs in data, presentation or package version, and all that was remarked."""
        return [*self.remarks, *differences(self.runs)]

    def rows(self) -> list[dict[str, Any]]:
        """One plain row per model: accuracies as shares, times in ms, counts and J per sample.

        Of a model with several runs, the means, with the standard deviation under the same key and
        ``_sd``; ratios to the baseline under ``_ratio``. Every energy has its source beside it.
        """
        return telling.plain_rows(self)

    def table(self, width: int = 80) -> str:
        """The comparison as a text table, its energies with their sources.

        Raises:
            MissingExtraError: if rich is not installed.
        """
        return telling.text(self, width)

    def to_pandas(self) -> DataFrame:
        """`rows` as a pandas frame.

        Raises:
            MissingExtraError: if pandas is not installed.
        """
        return to_pandas(self.rows())

    def plot(self, width: float = WIDTH) -> dict[str, Figure]:
        """The figures by name; ``"accuracy"``, ``"time"``, ``"energy"``, ``"pareto"`` and others.

        Args:
            width: in inches.

        Raises:
            MissingExtraError: if matplotlib is not installed.
        """
        return {name: drawn.figure for name, drawn in drawing.figures(self, width).items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, JSON-safe, that `from_dict` takes back without loss."""
        content = {
            "profiles": [profile.to_dict() for profile in self.profiles],
            "baseline": self.baseline,
            "name": self.name,
            "remarks": list(self.remarks),
            "models": [
                {"name": name, "runs": [run.to_dict() for run in runs]}
                for name, runs in self.runs.items()
            ],
        }
        return {
            "format": "dynvision_snn comparison",
            "schema": SCHEMA,
            "checksum": _checksum(content),
            **content,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Comparison:
        """The comparison that `to_dict` wrote.

        Raises:
            ComparisonError: for another schema, or content that is not as it was written.
        """
        if not isinstance(values, Mapping) or "schema" not in values or "checksum" not in values:
            raise ComparisonError(
                "this is no saved comparison: it has no schema and checksum. What Comparison.save "
                "and dynvision-snn compare and simulate write is one; a simulation alone becomes "
                'one by Comparison({"its name": simulation}).save(path).'
            )
        if values["schema"] != SCHEMA:
            raise ComparisonError(
                f"a comparison of schema {values['schema']!r} cannot be read; this version reads "
                f"schema {SCHEMA}. Run the comparison again, or read it with the version that "
                "wrote it."
            )
        content = {k: v for k, v in values.items() if k not in ("format", "schema", "checksum")}
        if _checksum(content) != values["checksum"]:
            raise ComparisonError(
                "the comparison's content does not fit its checksum: it was changed after it was "
                "written. Run it again, or take back the change."
            )
        try:
            return cls(
                {
                    model["name"]: [Simulation.from_dict(run) for run in model["runs"]]
                    for model in content["models"]
                },
                [HardwareProfile.from_dict(profile) for profile in content["profiles"]],
                baseline=content["baseline"],
                name=content["name"],
                remarks=content["remarks"],
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, DynvisionError):
                raise ComparisonError(f"the comparison cannot be read: {error}") from error
            raise ComparisonError(
                f"the comparison cannot be read: {type(error).__name__}: {error}."
            ) from error

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Writes the comparison, whole or not at all.

        Args:
            path: a file that ends in ``.json``; or else a folder, for the JSON, the tables as
                text, Markdown, LaTeX and CSV, the figures as PNG and SVG, and a report in HTML.
            force: whether what is there may be overwritten.

        Raises:
            OutputError: if it exists already and `force` is not set, or cannot be written.
            MissingExtraError: for a folder without rich, matplotlib and jinja2.
        """
        saving.save(self, path, force=force)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Comparison)
            and list(self.runs) == list(other.runs)
            and self.to_dict() == other.to_dict()
        )

    __hash__ = None  # type: ignore[assignment]  # tensors inside

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        runs = sum(map(len, self.runs.values()))
        priced = ", ".join(profile.name for profile in self.profiles)
        return f"<Comparison of {', '.join(self.runs)}; runs: {runs}; priced by {priced}>"

    def _repr_html_(self) -> str:
        return telling.html(self, to_html)


def compare(
    models: Mapping[str, TimedModel | Sequence[TimedModel]],
    loader: Iterable[Any],
    presentation: PresentationSource = None,
    *,
    time_axis: int | None = None,
    every: float | None = None,
    by_timestep: bool = True,
    seed: int = 0,
    decoding: Decoding = "membrane",
    profiles: Sequence[ProfileLike] = DEFAULT_PROFILES,
    baseline: str | None = None,
    rules: Mapping[str, DecisionRule] = DEFAULT_RULES,
    name: str = "",
    progress: bool | None = None,
) -> Comparison:
    """Runs several models on the same data and presentation.

    Args:
        models: wrapped models by name; several of one name (seeds, checkpoints) are told as mean
            and standard deviation.
        loader: batches of images and labels; gone through once per model, so it must give the same
            samples each time (a DataLoader, a list); in the same order, where each sample has its
            own presentation.
        presentation: the schedule, one for each sample, drawn, or the loader's own, as in
            `simulate`; shared by all models.
        time_axis: as in `simulate`, for a loader whose inputs have time themselves.
        every: as in `simulate`: runs in chunks of this many ms, with the same results.
        by_timestep: as in `simulate`: whether anything is kept by timestep. Figures over time need
            it.
        seed: of presentations that are drawn.
        decoding: as in `simulate`.
        profiles: hardware profiles that energies are shown for.
        baseline: the model that ratios and break-even are against, such as a non-spiking one.
        rules: decision rules by name; tables show the first, figures all.
        name: what files are called by.
        progress: whether progress bars are shown; by default on a terminal.

    Raises:
        ComparisonError: if there is no model, or the loader gave the models different samples.
        WrapError: for a model that is not wrapped.
    """
    runs: dict[str, list[Simulation]] = {}
    first: Simulation | None = None
    for title, given in models.items():
        runs[title] = []
        for model in [given] if isinstance(given, nn.Module) else given:
            run = simulate(
                model,
                loader,
                presentation,
                time_axis=time_axis,
                every=every,
                by_timestep=by_timestep,
                seed=seed,
                decoding=decoding,
                rules=rules,
                progress=progress,
                title=title,
            )
            first = first or run
            if run.data != first.data:
                raise ComparisonError(
                    f"{title!r} saw other samples than the model before it: {run.data}; and "
                    f"{first.data}. Give a loader that yields the same samples each time it is "
                    "gone through (a DataLoader or a list, not a generator); where each sample has "
                    "its own presentation in the same order, too (no shuffling)."
                )
            runs[title].append(run)
    return Comparison(runs, profiles, baseline=baseline, name=name)


def _check_same_model(name: str, first: Simulation, other: Simulation) -> None:
    facts = [
        {
            "presentation": run.presentation.to_dict(),
            "data": run.data,
            "parameters": run.n_parameters,
        }
        for run in (first, other)
    ]
    for what, ours in facts[0].items():
        theirs = facts[1][what]
        if ours != theirs:
            raise ComparisonError(
                f"the runs of {name!r} differ in {what}: {ours} and {theirs}. Only repetitions of "
                "one model belong under one name."
            )
    layers = [[layer.name for layer in run.budget.counts] for run in (first, other)]
    kept = [(run.moments.keys(), run.by_timestep, run.decoding) for run in (first, other)]
    if layers[0] != layers[1] or kept[0] != kept[1]:
        raise ComparisonError(
            f"the runs of {name!r} differ in their layers, their decision rules, what was decoded, "
            "or whether they were kept by timestep. Only repetitions of one model belong under one "
            "name."
        )


def _checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
