"""One sample's run as a picture: spikes of every layer, and the membranes that are decoded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from dynvision_snn.errors import ComparisonError
from dynvision_snn.report.figure import (
    BESIDE,
    HATCH,
    INK,
    QUIET,
    RULE_MARKERS,
    WIDTH,
    finish,
    new_figure,
    shade,
    shown_name,
)
from dynvision_snn.schedule import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["membrane_traces", "spike_raster"]


def spike_raster(
    layers: Mapping[str, tuple[int, Sequence[tuple[int, int]]]],
    *,
    n_timesteps: int,
    dt: float,
    intervals: Iterable[Interval] = (),
    stimuli: Iterable[tuple[float, float, int]] = (),
    title: str = "",
    colour: str = INK,
    width: float = WIDTH,
) -> Figure:
    """A mark for every spike of one sample, layer below layer.

    Args:
        layers: By layer: how many units are shown, and pairs of timestep and unit that spiked.
        n_timesteps: Of the presentation.
        dt: Length of one timestep in ms.
        intervals: As ``Presentation.intervals()``.
        stimuli: As ``Presentation.stimulus_intervals()``.
        title: Shown above.
        colour: Of the marks: the model's.
        width: In inches.

    Returns:
        The figure.

    Raises:
        ComparisonError: If there is no layer.
        MissingExtraError: If matplotlib is not installed.
    """
    if not layers:
        raise ComparisonError("there is no spiking layer to draw; expected at least one.")
    heights = [max(0.35, min(2.6, 0.018 * units)) for units, _ in layers.values()]
    figure, panels = new_figure(0.85 + sum(heights) + 0.15 * len(heights), width, heights)
    intervals, stimuli = list(intervals), list(stimuli)
    shades = []
    for axes, height, (name, (units, spikes)) in zip(panels, heights, layers.items(), strict=True):
        shades = shade(axes, intervals, stimuli, 0.0, n_timesteps * dt)
        # One mark is as high as its unit's row, so that neighbours do not overlap.
        size = min(7.0, max(1.6, 72 * height / units))
        axes.plot(
            [(step + 0.5) * dt for step, _ in spikes],
            [unit for _, unit in spikes],
            marker="|",
            markersize=size,
            markeredgewidth=1.1,
            color=colour,
            linestyle="none",
        )
        axes.set(xlim=(0, n_timesteps * dt), ylim=(units - 0.5, -0.5))
        axes.set_ylabel(f"{name or '(model)'}\nunit")
        axes.set_yticks(sorted({0, units - 1}))
    panels[-1].set_xlabel("time (ms)")
    finish(figure, title, shades)
    return figure


def membrane_traces(
    membrane: Sequence[Sequence[float]],
    *,
    dt: float,
    answers: Iterable[int] = (),
    onsets: Iterable[float] = (),
    decisions: Mapping[str, Sequence[int]] | None = None,
    intervals: Iterable[Interval] = (),
    stimuli: Iterable[tuple[float, float, int]] = (),
    title: str = "",
    quantity: str = "readout's membrane (model's units)",
    colour: str = INK,
    width: float = WIDTH,
) -> Figure:
    """The readout of one sample over time, a line for every class.

    Args:
        membrane: ``[T][classes]``.
        dt: Length of one timestep in ms.
        answers: The right classes, drawn in colour.
        onsets: When stimuli begin, in ms: marked on the axis.
        decisions: By rule (or ``"settling"``), the timesteps at which it decided.
        intervals: As ``Presentation.intervals()``.
        stimuli: As ``Presentation.stimulus_intervals()``.
        title: Shown above.
        quantity: What is drawn, with its unit.
        colour: Of the right classes: the model's.
        width: In inches.

    Returns:
        The figure.

    Raises:
        ComparisonError: If there is no timestep.
        MissingExtraError: If matplotlib is not installed.
    """
    if not membrane:
        raise ComparisonError("there is no timestep to draw; expected at least one.")
    end = len(membrane) * dt
    right = set(answers)
    figure, (axes,) = new_figure(3.2, width)
    shades = shade(axes, list(intervals), list(stimuli), 0.0, end)
    edges = [step * dt for step in range(len(membrane) + 1)]
    handles: list[Any] = []
    for index in range(len(membrane[0])):
        values = [row[index] for row in membrane]
        (line,) = axes.plot(
            edges,
            [*values, values[-1]],
            drawstyle="steps-post",
            color=colour if index in right else HATCH,
            linewidth=2.0 if index in right else 1.0,
            zorder=2 if index in right else 1,
            label=f"class {index}, the answer" if index in right else "other classes",
        )
        if index in right or all(h.get_label() != "other classes" for h in handles):
            handles.append(line)
    for onset in onsets:
        axes.axvline(onset, color=INK, linewidth=1.0, zorder=1.5)
        axes.annotate(
            "onset",
            (onset, 1),
            (3, -5),
            xycoords=("data", "axes fraction"),
            **BESIDE,
            fontsize=8,
            color=INK,
        )
    for marker, (rule, steps) in zip(cycle(RULE_MARKERS), (decisions or {}).items(), strict=False):
        handles += axes.plot(
            [(step + 0.5) * dt for step in steps],
            [max(membrane[step]) for step in steps],
            marker=marker,
            markersize=7.5,
            markerfacecolor="white",
            markeredgecolor=INK,
            linestyle="none",
            zorder=3,
            label=shown_name(rule),
        )
    axes.axhline(0, color=QUIET, linewidth=0.6, zorder=0.8)
    axes.set(xlim=(0, end), xlabel="time (ms)", ylabel=quantity)
    finish(figure, title, [*handles, *shades])
    return figure
