"""What is told of one simulation, as plain numbers, and of several runs of one model."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dynvision_snn.energy import HardwareProfile, Joules
from dynvision_snn.energy.breakeven import break_even
from dynvision_snn.energy.pricing import unwarned
from dynvision_snn.moments import SETTLING
from dynvision_snn.presentation import Presentation
from dynvision_snn.report.numbers import MeanSD
from dynvision_snn.simulation import Simulation

__all__ = [
    "Value",
    "anytime",
    "energy_over_time",
    "joules_by_layer",
    "joules_of",
    "measured",
    "over_runs",
    "ratio",
    "stands_against",
]

Value = float | MeanSD | None
"""One number of a model: of its one run, over its several runs, or none."""


def measured(simulation: Simulation, profiles: Sequence[HardwareProfile]) -> dict[str, Any]:
    """Accuracies as shares, times in ms, rates in Hz, counts and J per sample, memory in bytes.

    None where there is nothing to tell: an accuracy without a timestep that it is over, the energy
    on a profile that has no figure for some of the synaptic operations.
    """
    total = simulation.budget.total
    phases = simulation.accuracy_by_phase
    told: dict[str, float | None] = {
        "accuracy_last": simulation.accuracy_last,
        "accuracy": simulation.accuracy,
        "accuracy_null": phases["null"],
        "accuracy_reaction": phases["reaction"],
        "settling_time": simulation.settling_time,
    }
    for name, moment in simulation.moments.items():
        if name != SETTLING:
            told[f"decision_time[{name}]"] = moment.time
        told[f"reached[{name}]"] = moment.reached
        told[f"accuracy[{name}]"] = moment.accuracy
    told |= {
        "firing_rate": total.firing_rate,
        "spikes": total.spikes,
        "synops_ac": total.synops_ac,
        "synops_mac": total.synops_mac,
        "synops_dense": total.synops_dense,
        "neuron_updates": total.neuron_updates,
    }
    for profile in profiles:
        joules = joules_of(simulation, profile)
        priced = not joules.lacks_synops
        told[f"joules[{profile.name}]"] = float(joules) if priced else None
        for term, value in joules.terms.items():
            told[f"joules[{profile.name}][{term}]"] = value
        for name, moment in simulation.moments.items():
            until = moment.joules(profile) if priced else None
            told[f"joules_until[{profile.name}][{name}]"] = until
    told |= {"n_parameters": simulation.n_parameters, "model_bytes": simulation.model_bytes}
    return {
        key: None if value is None or math.isnan(value) else value for key, value in told.items()
    }


def over_runs(runs: Sequence[Mapping[str, Any]]) -> dict[str, Value]:
    """Every quantity over the runs of one model; of a single run as it is.

    A run that has no value gives none to the others: a mean over some of them would hide that.
    Equal whole numbers, such as parameters, have no spread.

    >>> over_runs([{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": None}])
    {'a': MeanSD(mean=2.0, sd=1.4142135623730951), 'b': None}
    """
    if len(runs) == 1:
        return dict(runs[0])
    pooled: dict[str, Value] = {}
    for key in dict.fromkeys(key for run in runs for key in run):
        values = [run.get(key) for run in runs]
        if isinstance(values[0], int) and len(set(values)) == 1:
            pooled[key] = values[0]
            continue
        known = [float(value) for value in values if value is not None]
        complete = len(known) == len(values)
        pooled[key] = MeanSD(statistics.fmean(known), statistics.stdev(known)) if complete else None
    return pooled


def ratio(value: Value, base: Value) -> float | None:
    """A quantity over the baseline's, of means; None where either is missing or the base is 0.

    >>> ratio(MeanSD(2.0, 0.1), 4.0), ratio(1.0, 0.0)
    (0.5, None)
    """
    above, below = (x.mean if isinstance(x, MeanSD) else x for x in (value, base))
    return None if above is None or not below else above / below


def joules_of(simulation: Simulation, profile: HardwareProfile) -> Joules:
    """Energy per sample; what its profile lacks is shown by whoever asks, so nobody is warned."""
    with unwarned():
        return simulation.budget.joules(profile)


def joules_by_layer(runs: Sequence[Simulation], profile: HardwareProfile) -> dict[str, float]:
    """J per sample of each layer, the mean over runs of one model."""
    with unwarned():
        each = [run.budget.joules(profile, by="layer") for run in runs]
    return {layer: statistics.fmean(float(run[layer]) for run in each) for layer in each[0]}


def energy_over_time(runs: Sequence[Simulation], profile: HardwareProfile) -> list[float]:
    """J per sample at every timestep, idle time first, the mean over runs of one model."""
    with unwarned():
        each = []
        for run in runs:
            during = run.budget.joules(profile, by="timestep")
            idle = run.budget.idle
            before = during[:0] if idle is None else idle.joules(profile, by="timestep")
            each.append(torch.cat([before, during]))
    mean: list[float] = torch.stack(each).mean(0).tolist()
    return mean


def anytime(runs: Sequence[Simulation], profile: HardwareProfile) -> list[tuple[float, float]]:
    """Energy since the onset and accuracy at each timestep after it, over onsets and runs.

    The accuracy is the share of right answers of all, of whichever onset they are about.
    From an onset to its last supervised timestep, or to the next onset where it has none; of
    several onsets as far as the shortest goes. None where samples have presentations of their own,
    or nothing was kept by timestep.
    """
    presentation = runs[0].presentation
    if not isinstance(presentation, Presentation) or not runs[0].by_timestep:
        return []
    bounds = pairwise([*presentation.onsets, presentation.n_timesteps])
    supervised = presentation.supervised_mask
    spans = []
    for start, stop in bounds:
        counted = supervised[start:stop].nonzero().flatten().tolist()
        spans.append((start, start + counted[-1] + 1 if counted else stop))
    if not spans:
        return []
    length = min(stop - start for start, stop in spans)
    energies: list[Tensor] = []
    right = asked = torch.zeros(length, dtype=torch.int64)
    for run in runs:
        spent = torch.tensor(energy_over_time([run], profile), dtype=torch.float64)
        spent = spent[-presentation.n_timesteps :]
        for start, _ in spans:
            energies.append(spent[start : start + length].cumsum(0))
            right = right + run.correct_by_timestep[start : start + length]
            asked = asked + run.counted_by_timestep[start : start + length]
    energy, accuracy = torch.stack(energies).mean(0), right.double() / asked
    return list(zip(energy.tolist(), accuracy.tolist(), strict=True))


def stands_against(
    simulation: Simulation, baseline: Sequence[Simulation], profile: HardwareProfile
) -> dict[str, float | None]:
    """The activity at which a spiking model costs what the baseline costs: rate and factor.

    The baseline's cost is the mean over its runs, as in ratios. None for a model that does not
    spike, and where either cannot be priced.
    """
    fires = simulation.budget.total.spikes > 0
    theirs = [joules_of(run, profile) for run in baseline]
    if not fires or any(j.lacks_synops for j in (joules_of(simulation, profile), *theirs)):
        return {"break_even_rate": None, "break_even_factor": None}
    found = break_even(simulation.budget, statistics.fmean(theirs), profile)
    return {
        "break_even_rate": found.break_even_firing_rate,
        "break_even_factor": found.factor,
    }
