"""A comparison as figures."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dynvision_snn.comparison.measures import (
    anytime,
    energy_over_time,
    joules_by_layer,
    joules_of,
)
from dynvision_snn.comparison.telling import priced_by, values
from dynvision_snn.energy import HardwareProfile
from dynvision_snn.moments import SETTLING
from dynvision_snn.presentation import Presentation
from dynvision_snn.report.anytime import accuracy_by_energy_spent
from dynvision_snn.report.figure import ModelStyle, model_styles
from dynvision_snn.report.files import file_names
from dynvision_snn.report.numbers import MeanSD
from dynvision_snn.report.over_time import energy_and_accuracy_over_time
from dynvision_snn.report.pareto import accuracy_against_energy
from dynvision_snn.report.plots import accuracy_over_time, energy_by_layer
from dynvision_snn.report.traces import membrane_traces, spike_raster
from dynvision_snn.simulation import Simulation
from dynvision_snn.timing import containing_steps

if TYPE_CHECKING:
    from dynvision_snn.comparison.comparison import Comparison
    from dynvision_snn.report.figure import Figure

__all__ = ["Drawn", "figures"]


@dataclass(frozen=True)
class Drawn:
    """A figure.

    Attributes:
        figure: as matplotlib has it.
        caption: what it shows, for readers who do not see it, too.
        note: source and basis of its energies.
    """

    figure: Figure
    caption: str
    note: str = ""


def figures(comparison: Comparison, width: float, *, noted: bool = True) -> dict[str, Drawn]:
    """All figures by name, in the order in which they are shown.

    Models that saw different presentations have time figures of their own; those that were not
    kept by timestep have none.

    Args:
        comparison: what is drawn.
        width: in inches.
        noted: whether sources stand inside the figures; if not, whoever shows them beside text
            shows `Drawn.note`.
    """
    styles = model_styles(comparison.runs)
    drawn: dict[str, Drawn] = {}
    for number, group in enumerate(_by_presentation(comparison), start=1):
        suffix = "" if number == 1 else f"-{number}"
        for name, figure in _over_time(comparison, group, styles, width, noted):
            drawn[name + suffix] = figure
    drawn |= dict(_by_energy(comparison, styles, width, noted))
    names = file_names(comparison.runs)
    for model, (run, *_) in comparison.runs.items():
        if not run.by_timestep:
            continue
        for name, figure in _one_sample(model, run, styles[model], width):
            drawn[f"{name}-{names[model]}"] = figure
    return drawn


def _by_presentation(comparison: Comparison) -> list[dict[str, Sequence[Simulation]]]:
    groups: list[dict[str, Sequence[Simulation]]] = []
    for name, runs in comparison.runs.items():
        if not runs[0].by_timestep:
            continue
        for group in groups:
            first = next(iter(group.values()))[0]
            if first.presentation.to_dict() == runs[0].presentation.to_dict():
                group[name] = runs
                break
        else:
            groups.append({name: runs})
    return groups


def _over_time(
    comparison: Comparison,
    group: Mapping[str, Sequence[Simulation]],
    styles: Mapping[str, ModelStyle],
    width: float,
    noted: bool,
) -> Iterator[tuple[str, Drawn]]:
    presentation = next(iter(group.values()))[0].presentation
    profile = comparison.profiles[0]
    accuracies = {name: _mean_accuracy(runs) for name, runs in group.items()}
    time: dict[str, Any] = {
        "dt": presentation.dt,
        "intervals": presentation.intervals(),
        "stimuli": presentation.stimulus_intervals(),
        "styles": styles,
        "width": width,
    }
    yield (
        "accuracy",
        Drawn(
            accuracy_over_time(accuracies, title="Accuracy over time", **time),
            "Share of right answers at every timestep; during null input, about the last stimulus "
            "shown. No answer counts in the reaction window.",
        ),
    )
    priced = _priced(group, profile)
    if priced:
        note = priced_by(comparison, profile)
        figure = energy_and_accuracy_over_time(
            {name: energy_over_time(runs, profile) for name, runs in priced.items()},
            {name: accuracies[name] for name in priced},
            title="Accuracy and energy over time",
            note=note if noted else "",
            **time,
        )
        yield (
            "time",
            Drawn(
                figure,
                "Accuracy, and the energy that each timestep takes, over one time axis.",
                _source(profile),
            ),
        )


def _by_energy(
    comparison: Comparison, styles: Mapping[str, ModelStyle], width: float, noted: bool
) -> Iterator[tuple[str, Drawn]]:
    profile = comparison.profiles[0]
    note = priced_by(comparison, profile)
    shared: dict[str, Any] = {"note": note if noted else "", "styles": styles, "width": width}
    yield (
        "energy",
        Drawn(
            energy_by_layer(_layer_rows(comparison), title="Energy by layer", **shared),
            "Energy per sample of every layer that has any; layers that cannot be counted are "
            "named.",
            _source(profile),
        ),
    )
    told = values(comparison)
    priced = _priced(comparison.runs, profile)
    # Without a label there is no accuracy to set the energy against.
    priced = {n: runs for n, runs in priced.items() if told[n]["accuracy_last"] is not None}
    if not priced:
        return
    energy = {name: _mean_sd(told[name][f"joules[{profile.name}]"]) for name in priced}
    accuracy = {name: _mean_sd(told[name]["accuracy_last"]) for name in priced}
    yield (
        "pareto",
        Drawn(
            accuracy_against_energy(
                {name: (energy[name].mean, accuracy[name].mean) for name in priced},
                spreads={name: (energy[name].sd, accuracy[name].sd) for name in priced},
                title="Accuracy at the last supervised timestep, against energy",
                **shared,
            ),
            "Accuracy against energy per sample. Filled: on the Pareto front.",
            _source(profile),
        ),
    )
    curves = {name: curve for name, runs in priced.items() if (curve := anytime(runs, profile))}
    if curves:
        rules: dict[str, dict[str, tuple[float, float]]] = {}
        for name in curves:
            found = {
                _marked(moment): (
                    statistics.fmean(run.moments[moment].joules(profile) for run in priced[name]),
                    statistics.fmean(run.moments[moment].accuracy for run in priced[name]),
                )
                for moment in _ordered(priced[name][0])
            }
            rules[name] = found
        yield (
            "anytime",
            Drawn(
                accuracy_by_energy_spent(
                    curves, rules=rules, title="Accuracy by the energy spent so far", **shared
                ),
                "Lines: accuracy if every sample answered at the same time after the onset, by the "
                "energy spent until then. Marks: each sample answers when its rule is met; "
                "those that never decide count as wrong, and have no energy.",
                _source(profile),
            ),
        )


def _one_sample(
    model: str, run: Simulation, style: ModelStyle, width: float
) -> Iterator[tuple[str, Drawn]]:
    trace = run.trace
    schedule = run.presentation
    shown = schedule if isinstance(schedule, Presentation) else schedule[0]
    labels = ", ".join(map(str, trace.labels))
    time: dict[str, Any] = {
        "dt": shown.dt,
        "intervals": shown.intervals(),
        "stimuli": shown.stimulus_intervals(),
        "colour": style.colour,
        "width": width,
    }
    decisions = {}
    for name in _ordered(run):
        times = run.moments[name].times[: len(shown.onsets), 0]
        steps = containing_steps(times.nan_to_num(0.0), shown.dt)
        decided = (torch.tensor(shown.onsets) + steps)[~times.isnan()]
        decisions[_marked(name)] = [int(step) for step in decided]
    what = "output (model's units)" if run.readout is None else "membrane (model's units)"
    yield (
        "membrane",
        Drawn(
            membrane_traces(
                trace.membrane.tolist(),
                answers=trace.labels,
                onsets=[onset * shown.dt for onset in shown.onsets],
                decisions=decisions,
                title=f"{model}: readout for one sample of class {labels}",
                quantity=f"readout's {what}",
                **time,
            ),
            f"{model}: what is decoded, for the first sample; marks lie on the class decided for.",
        ),
    )
    if any(raster.units for raster in trace.rasters.values()):
        figure = spike_raster(
            {name: (raster.shown, raster.spikes) for name, raster in trace.rasters.items()},
            n_timesteps=shown.n_timesteps,
            title=f"{model}: spikes for one sample of class {labels}",
            **time,
        )
        cut = [
            f"{name or 'the model'}: the first {raster.shown} of {raster.units} units"
            for name, raster in trace.rasters.items()
            if raster.shown < raster.units
        ]
        caption = f"{model}: every spike of the first sample. {'; '.join(cut)}".strip()
        yield "raster", Drawn(figure, caption)


def _priced(
    runs: Mapping[str, Sequence[Simulation]], profile: HardwareProfile
) -> dict[str, Sequence[Simulation]]:
    """The models of which every run has all of its synaptic operations priced."""
    return {
        name: each
        for name, each in runs.items()
        if not any(joules_of(run, profile).lacks_synops for run in each)
    }


def _layer_rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    profile = comparison.profiles[0]
    for name, runs in comparison.runs.items():
        for layer, joules in joules_by_layer(runs, profile).items():
            if joules:
                yield {"model": name, "layer": layer or "(model)", "joules": joules}
        for layer in runs[0].budget.uncounted:
            yield {"model": name, "layer": layer or "(model)", "joules": None}


def _source(profile: HardwareProfile) -> str:
    return (
        f"Energies by {profile.name} ({profile.basis}): {profile.source}. Its caveats stand below "
        "the first table."
    )


def _ordered(run: Simulation) -> list[str]:
    """Moments in the order in which figures mark them: settling, then rules by name."""
    return sorted(run.moments, key=lambda name: (name != SETTLING, name))


def _marked(moment: str) -> str:
    return "settled (hindsight)" if moment == SETTLING else f"decides by {moment}"


def _mean_accuracy(runs: Sequence[Simulation]) -> list[float]:
    return [
        statistics.fmean(shares)
        for shares in zip(*(run.accuracy_by_timestep.tolist() for run in runs), strict=True)
    ]


def _mean_sd(value: Any) -> MeanSD:
    return (
        value
        if isinstance(value, MeanSD)
        else MeanSD(float("nan") if value is None else value, 0.0)
    )
