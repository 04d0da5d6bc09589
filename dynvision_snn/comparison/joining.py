"""Results of different runs or machines, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from dynvision_snn.comparison.comparison import Comparison
from dynvision_snn.energy import HardwareProfile
from dynvision_snn.energy.budget import ProfileLike
from dynvision_snn.errors import ComparisonError
from dynvision_snn.simulation import Simulation

__all__ = ["join"]


def join(
    comparisons: Mapping[str, Comparison],
    *,
    pool: bool = False,
    profiles: Sequence[ProfileLike] | None = None,
    baseline: str | None = None,
    name: str = "",
) -> Comparison:
    """One comparison of all models of several.

    What differs in data, presentation or package version is said above its tables.

    Args:
        comparisons: by what tells them apart, such as the file that each is from. Models of one
            name are told apart by it.
        pool: whether models of one name are runs of one model instead (other seeds), told as mean
            and standard deviation.
        profiles: hardware profiles that energies are shown for; by default those that all
            comparisons have, by the figures that they were saved with.
        baseline: the model that ratios are against; by default the one that the comparisons agree
            on, if they do.
        name: what files are called by.

    Raises:
        ComparisonError: if there is none, they share no profile, pooled runs do not belong
            together or are the same one, or two models would have one name.
    """
    if not comparisons:
        raise ComparisonError("there is nothing to join; expected at least one comparison.")
    names = [model for comparison in comparisons.values() for model in comparison.runs]
    runs: dict[str, list[Simulation]] = {}
    for label, comparison in comparisons.items():
        for model, simulations in comparison.runs.items():
            apart = not pool and names.count(model) > 1
            called = f"{model} ({label})" if apart else model
            if called in runs and not pool:
                raise ComparisonError(
                    f"two models would be called {called!r}: one of {label}, and one whose name it "
                    "is already. Leave one out, or pool them if they are runs of one model."
                )
            runs.setdefault(called, []).extend(simulations)
    if pool:
        _check_each_once(runs)
    remarks: list[str] = []
    if profiles is None:
        profiles, remarks = _shared_profiles(comparisons)
    for comparison in comparisons.values():
        remarks += [remark for remark in comparison.remarks if remark not in remarks]
    agreed = {comparison.baseline for comparison in comparisons.values()}
    if baseline is None and len(agreed) == 1:
        (common,) = agreed
        baseline = common if common in runs else None
    return Comparison(runs, profiles, baseline=baseline, name=name, remarks=remarks)


def _check_each_once(runs: Mapping[str, Sequence[Simulation]]) -> None:
    """Refuses to count one run as two, which would halve a standard deviation."""
    for model, simulations in runs.items():
        told = [json.dumps(simulation.to_dict(), sort_keys=True) for simulation in simulations]
        twice = [k for k, run in enumerate(told) if told.index(run) != k]
        if twice:
            raise ComparisonError(
                f"runs {told.index(told[twice[0]]) + 1} and {twice[0] + 1} of {model!r} are the "
                "same one. Leave out a file that holds what another holds already."
            )


def _shared_profiles(
    comparisons: Mapping[str, Comparison],
) -> tuple[Sequence[HardwareProfile], list[str]]:
    """The profiles that all have by name, as the first has them; and where another's differ."""
    (first, given), *others = comparisons.items()
    shared = [
        profile
        for profile in given.profiles
        if all(profile.name in {p.name for p in c.profiles} for _, c in others)
    ]
    if not shared:
        told = "; ".join(
            f"{label}: {', '.join(p.name for p in c.profiles)}" for label, c in comparisons.items()
        )
        raise ComparisonError(f"the comparisons share no hardware profile ({told}).")
    remarks = [
        f"Different figures for the profile {profile.name}: those of {first} are used, not those "
        f"of {label}."
        for profile in shared
        for label, comparison in others
        for theirs in comparison.profiles
        if theirs.name == profile.name and theirs != profile
    ]
    return shared, remarks
