"""Energy beside accuracy, as time runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from dynvision_snn.errors import ComparisonError
from dynvision_snn.report.figure import (
    WIDTH,
    ModelStyle,
    finish,
    model_styles,
    new_figure,
    shade,
    shown_name,
    spans_decades,
)
from dynvision_snn.report.numbers import scale
from dynvision_snn.schedule import Interval
from dynvision_snn.timing import format_ms

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["energy_and_accuracy_over_time"]


def energy_and_accuracy_over_time(
    energies: Mapping[str, Sequence[float]],
    accuracies: Mapping[str, Sequence[float]],
    *,
    dt: float,
    intervals: Iterable[Interval] = (),
    stimuli: Iterable[tuple[float, float, int]] = (),
    title: str = "",
    note: str = "",
    styles: Mapping[str, ModelStyle] | None = None,
    width: float = WIDTH,
) -> Figure:
    """Two panels over one time axis: accuracy above, energy per timestep below.

    Args:
        energies: J per sample at each timestep, by model; what comes before the presentation's
            first timestep is idle time, which ends with it.
        accuracies: From 0 to 1 at each timestep of the presentation, by model; NaN leaves a gap.
        dt: Length of one timestep in ms.
        intervals: As ``Presentation.intervals()``: reaction windows and idle time are hatched.
        stimuli: As ``Presentation.stimulus_intervals()``: shaded while shown.
        title: Shown above.
        note: Shown below: the source and basis of the joules.
        styles: From `model_styles`, where the models are only some of a comparison's.
        width: In inches.

    Returns:
        The figure.

    Raises:
        ComparisonError: If there is no model, or lengths or models do not fit each other.
        MissingExtraError: If matplotlib is not installed.
    """
    n_timesteps = {len(curve) for curve in accuracies.values()}
    if len(n_timesteps) != 1 or energies.keys() != accuracies.keys():
        raise ComparisonError(
            f"Accuracies of {n_timesteps or 'no'} timesteps of {format_ms(dt)}, for "
            f"{', '.join(accuracies)}; energies "
            f"for {', '.join(energies)}. Expected the same models, with one number of timesteps."
        )
    length = n_timesteps.pop()
    styles = styles or model_styles(energies)
    figure, (above, below) = new_figure(4.4, width, rows=(1.0, 1.0))
    idle = max(len(curve) for curve in energies.values()) - length
    begin, end = -idle * dt, length * dt
    intervals, stimuli = list(intervals), list(stimuli)
    shades = [shade(axes, intervals, stimuli, begin, end) for axes in (above, below)]
    positive = [value for curve in energies.values() for value in curve if value > 0]
    factor, prefix = scale(positive)
    lines = []
    for name, curve in energies.items():
        shares = [math.nan] * idle + [100 * float(share) for share in accuracies[name]]
        spent = [math.nan] * (idle + length - len(curve)) + [float(e) / factor for e in curve]
        edges = [begin + step * dt for step in range(idle + length + 1)]
        for axes, values in ((above, shares), (below, spent)):
            lines += axes.plot(
                edges,
                [*values, values[-1]],
                drawstyle="steps-post",
                color=styles[name].colour,
                linestyle=styles[name].dashes,
                linewidth=1.8,
                label=shown_name(name),
            )
    above.set(ylim=(0, 102), ylabel="accuracy (%)", xlim=(begin, end))
    below.set(xlabel="time (ms)", ylabel=f"energy per {format_ms(dt)} ({prefix}J)")
    if spans_decades(positive):
        # Silence costs nothing on some hardware: it lies at the bottom, not outside.
        below.set_yscale("log", nonpositive="clip")
        below.set_ylim(bottom=min(positive) / factor / 2)
        below.yaxis.set_major_formatter("{x:g}")
    else:
        below.set_ylim(bottom=0)
    finish(figure, title, [*lines[::2], *shades[0]], note)
    return figure
