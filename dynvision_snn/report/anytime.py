"""The anytime curve: what accuracy a model has, by the energy that it has spent so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dynvision_snn.errors import ComparisonError
from dynvision_snn.report.figure import (
    QUIET,
    RULE_MARKERS,
    WIDTH,
    ModelStyle,
    finish,
    model_styles,
    new_figure,
    shown_name,
    spans_decades,
)
from dynvision_snn.report.numbers import scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["accuracy_by_energy_spent"]

Point = tuple[float, float]


def accuracy_by_energy_spent(
    curves: Mapping[str, Sequence[Point]],
    *,
    rules: Mapping[str, Mapping[str, Point]] | None = None,
    title: str = "",
    note: str = "",
    styles: Mapping[str, ModelStyle] | None = None,
    width: float = WIDTH,
) -> Figure:
    """Accuracy against the energy spent since the onset, and where decision rules stop.

    Args:
        curves: Energy in J and accuracy (0 to 1) at each timestep from the onset, by model.
        rules: Mean energy at the decision and accuracy of decisions, by rule, by model; rules in
            the order of the first model, of which marks follow. They may lie off the curve: each
            sample decides at its own time.
        title: Shown above.
        note: Shown below: the source and basis of the joules.
        styles: From `model_styles`, where the models are only some of a comparison's.
        width: In inches.

    Returns:
        The figure.

    Raises:
        ComparisonError: If there is no curve, or none of a point.
        MissingExtraError: If matplotlib is not installed.
    """
    if not any(len(curve) for curve in curves.values()):
        raise ComparisonError("no curve has a point; expected at least one.")
    from matplotlib.lines import Line2D

    styles = styles or model_styles(curves)
    operating = rules or {}
    every = [energy for curve in curves.values() for energy, _ in curve]
    every += [e for points in operating.values() for e, _ in points.values() if math.isfinite(e)]
    factor, prefix = scale(every)
    figure, (axes,) = new_figure(3.6, width)
    if spans_decades(every):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    handles = []
    for name, curve in curves.items():
        handles += axes.plot(
            [energy / factor for energy, _ in curve],
            [100 * share for _, share in curve],
            color=styles[name].colour,
            linestyle=styles[name].dashes,
            linewidth=1.8,
            label=shown_name(name),
        )
    kinds = list(dict.fromkeys(rule for points in operating.values() for rule in points))
    for name, points in operating.items():
        for rule, (energy, share) in points.items():
            axes.plot(
                energy / factor,
                100 * share,
                marker=_marker(kinds, rule),
                markersize=7.5,
                markerfacecolor="white",
                markeredgecolor=styles[name].colour,
                markeredgewidth=1.6,
                linestyle="none",
                zorder=3,
            )
    handles += [
        Line2D(
            [],
            [],
            marker=_marker(kinds, rule),
            color=QUIET,
            markerfacecolor="white",
            linestyle="none",
            label=shown_name(rule),
        )
        for rule in kinds
    ]
    axes.set(
        xlabel=f"energy spent since the onset ({prefix}J per sample)",
        ylabel="accuracy (%)",
        ylim=(0, 104),
    )
    finish(figure, title, handles, note)
    return figure


def _marker(kinds: Sequence[str], rule: str) -> str:
    return RULE_MARKERS[kinds.index(rule) % len(RULE_MARKERS)]
