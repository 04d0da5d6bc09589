"""Accuracy against energy: which points no other one beats, and a figure of them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dynvision_snn.errors import ComparisonError
from dynvision_snn.report.numbers import scale
from dynvision_snn.report.plots import _COLOURS, _INK, _QUIET, _finish, _new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["accuracy_against_energy", "pareto_front"]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points are not beaten: none other has less energy and at least the accuracy, or more.

    Args:
        points: energy and accuracy of each. NaN is beaten by anything.

    >>> pareto_front([(1.0, 0.8), (2.0, 0.9), (3.0, 0.85), (1.0, 0.7)])
    [True, True, False, False]
    """

    def beaten(energy: float, accuracy: float) -> bool:
        return any(
            other_energy <= energy
            and other_accuracy >= accuracy
            and (other_energy, other_accuracy) != (energy, accuracy)
            for other_energy, other_accuracy in points
        )

    return [
        not (math.isnan(energy) or math.isnan(accuracy)) and not beaten(energy, accuracy)
        for energy, accuracy in points
    ]


def accuracy_against_energy(
    points: Mapping[str, tuple[float, float]],
    *,
    energy: str = "energy per sample",
    unit: str = "J",
    title: str = "",
    note: str = "",
) -> Figure:
    """Points of accuracy over energy, the front among them joined and filled.

    Args:
        points: energy and accuracy (0 to 1) by name; a name is written beside its point.
        energy: what the energy is, for the axis.
        unit: its unit, for which an SI prefix is chosen.
        title: shown above.
        note: shown below: source and basis of the energies.

    Raises:
        ComparisonError: if there is no point with both values.
        MissingExtraError: if matplotlib is not installed.
    """
    shown = {
        name: point
        for name, point in points.items()
        if all(math.isfinite(value) for value in point)
    }
    if not shown:
        raise ComparisonError("no point has both an energy and an accuracy; expected at least one.")
    on_front = dict(zip(shown, pareto_front(list(shown.values())), strict=True))
    factor, prefix = scale([value for value, _ in shown.values()])
    figure, axes = _new_figure(height=3.8)
    front = sorted(shown[name] for name in shown if on_front[name])
    axes.plot(
        [value / factor for value, _ in front],
        [100 * share for _, share in front],
        color=_COLOURS[0],
        linewidth=1.2,
        drawstyle="steps-post",
        zorder=1,
        label="Pareto front",
    )
    for name, (value, share) in shown.items():
        axes.scatter(
            value / factor,
            100 * share,
            s=36,
            color=_COLOURS[0] if on_front[name] else "white",
            edgecolors=_COLOURS[0] if on_front[name] else _QUIET,
            zorder=2,
        )
        axes.annotate(
            name,
            (value / factor, 100 * share),
            (5, -9),
            textcoords="offset points",
            fontsize=8,
            color=_INK if on_front[name] else _QUIET,
        )
    axes.set(xlabel=f"{energy} ({prefix}{unit})", ylabel="accuracy (%)")
    axes.margins(x=0.12, y=0.15)
    _finish(axes, title)
    if note:
        figure.supxlabel(textwrap.fill(note, 105), x=0.01, ha="left", fontsize=7.5, color=_QUIET)
    return figure
