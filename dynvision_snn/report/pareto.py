"""Accuracy against energy: which points no other one beats, and a figure of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dynvision_snn.errors import ComparisonError
from dynvision_snn.report.figure import (
    INK,
    QUIET,
    WIDTH,
    ModelStyle,
    finish,
    new_figure,
    shown_name,
    spans_decades,
)
from dynvision_snn.report.numbers import scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["accuracy_against_energy", "pareto_front"]

_PLAIN = ModelStyle("#0072B2", "-", "o")


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points are not beaten: none other has less energy and at least the accuracy, or more.

    Args:
        points: energy and accuracy of each. NaN is beaten by anything. Those that differ by
            rounding alone, as sums in another order do, are equal.

    >>> pareto_front([(1.0, 0.8), (2.0, 0.9), (3.0, 0.85), (1.0, 0.7)])
    [True, True, False, False]
    """

    def beaten(energy: float, accuracy: float) -> bool:
        for other_energy, other_accuracy in points:
            as_cheap = math.isclose(other_energy, energy)
            as_right = math.isclose(other_accuracy, accuracy)
            if (
                (as_cheap or other_energy < energy)
                and (as_right or other_accuracy > accuracy)
                and not (as_cheap and as_right)
            ):
                return True
        return False

    return [
        not (math.isnan(energy) or math.isnan(accuracy)) and not beaten(energy, accuracy)
        for energy, accuracy in points
    ]


def accuracy_against_energy(
    points: Mapping[str, tuple[float, float]],
    *,
    spreads: Mapping[str, tuple[float, float]] | None = None,
    energy: str = "energy per sample",
    unit: str = "J",
    title: str = "",
    note: str = "",
    styles: Mapping[str, ModelStyle] | None = None,
    width: float = WIDTH,
) -> Figure:
    """Points of accuracy over energy, the front among them joined and filled.

    Args:
        points: energy and accuracy (0 to 1) by name; a name is written beside its point.
        spreads: standard deviations of both by name, drawn as bars.
        energy: what the energy is, for the axis.
        unit: its unit, for which an SI prefix is chosen.
        title: shown above.
        note: shown below: source and basis of the energies.
        styles: from `model_styles`, where points are models; else all points look alike.
        width: in inches.

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
    energies = [value for value, _ in shown.values()]
    factor, prefix = scale(energies)
    figure, (axes,) = new_figure(3.4, width)
    if spans_decades(energies) and min(energies) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    front = sorted(shown[name] for name in shown if on_front[name])
    (line,) = axes.plot(
        [value / factor for value, _ in front],
        [100 * share for _, share in front],
        color=QUIET,
        linewidth=1.2,
        drawstyle="steps-post",
        zorder=1,
        label="Pareto front (filled marks)",
    )
    for name, (value, share) in shown.items():
        style = (styles or {}).get(name, _PLAIN)
        bars = (spreads or {}).get(name, (0.0, 0.0))
        axes.errorbar(
            value / factor,
            100 * share,
            xerr=bars[0] / factor or None,
            yerr=100 * bars[1] or None,
            fmt=style.marker,
            markersize=7,
            color=style.colour,
            markerfacecolor=style.colour if on_front[name] else "none",
            capsize=2,
            zorder=2,
        )
        axes.annotate(
            shown_name(name),
            (value / factor, 100 * share),
            (6, -10),
            textcoords="offset points",
            fontsize=9,
            color=INK if on_front[name] else QUIET,
        )
    axes.set(xlabel=f"{energy} ({prefix}{unit})", ylabel="accuracy (%)")
    axes.margins(x=0.2, y=0.25)
    axes.set_xlim(left=max(0, axes.get_xlim()[0]))
    finish(figure, title, [line], note)
    return figure
