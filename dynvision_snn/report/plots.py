"""Figures by model: accuracy over time, energy by layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dynvision_snn.errors import ComparisonError
from dynvision_snn.report.figure import (
    BESIDE,
    INK,
    QUIET,
    WIDTH,
    ModelStyle,
    finish,
    model_styles,
    new_figure,
    shade,
    shown_name,
)
from dynvision_snn.report.numbers import number, scale
from dynvision_snn.schedule import Interval
from dynvision_snn.timing import format_ms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["accuracy_over_time", "energy_by_layer"]


def accuracy_over_time(
    curves: Mapping[str, Sequence[float]],
    *,
    dt: float,
    intervals: Iterable[Interval] = (),
    stimuli: Iterable[tuple[float, float, int]] = (),
    chance: float | None = None,
    title: str = "",
    styles: Mapping[str, ModelStyle] | None = None,
    width: float = WIDTH,
) -> Figure:
    """Accuracy at every timestep, over the time of the presentation.

    Curves are steps, each as long as its timestep: a line between timesteps would seem to rise
    before the onset that it answers to.

    Args:
        curves: Accuracy from 0 to 1 at each timestep, by model; NaN leaves a gap.
        dt: Length of one timestep in ms.
        intervals: As ``Presentation.intervals()``: reaction windows are hatched. Idle time lies
            before the first timestep and is not drawn.
        stimuli: As ``Presentation.stimulus_intervals()``: shaded while shown.
        chance: Accuracy of guessing, drawn as a line.
        title: Shown above.
        styles: From `model_styles`, where the models are only some of a comparison's.
        width: In inches.

    Returns:
        The figure.

    Raises:
        ComparisonError: If there is no curve, or they are empty or of different lengths.
        MissingExtraError: If matplotlib is not installed.
    """
    lengths = {name: len(curve) for name, curve in curves.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ComparisonError(
            f"Curves of {lengths} timesteps of {format_ms(dt)}; expected at least one, all of the "
            "same length above 0."
        )
    styles = styles or model_styles(curves)
    n_timesteps = next(iter(lengths.values()))
    figure, (axes,) = new_figure(3.3, width)
    shades = shade(axes, list(intervals), list(stimuli), 0.0, n_timesteps * dt)
    edges = [t * dt for t in range(n_timesteps + 1)]
    lines = []
    for name, curve in curves.items():
        style = styles[name]
        percent = [100 * float(share) for share in curve]
        lines += axes.plot(
            edges,
            [*percent, percent[-1]],
            drawstyle="steps-post",
            color=style.colour,
            linestyle=style.dashes,
            linewidth=1.8,
            label=shown_name(name),
        )
    if chance is not None:
        axes.axhline(100 * chance, color=QUIET, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.annotate(
            "chance",
            (1, 100 * chance),
            (-3, 6),
            xycoords=("axes fraction", "data"),
            **BESIDE,
            ha="right",
            fontsize=8,
            color=QUIET,
        )
    axes.set(xlim=(0, n_timesteps * dt), ylim=(0, 102), xlabel="time (ms)", ylabel="accuracy (%)")
    finish(figure, title, [*lines, *shades])
    return figure


def energy_by_layer(
    rows: Iterable[Mapping[str, Any]],
    *,
    value: str = "joules",
    unit: str = "J",
    quantity: str = "energy per sample",
    title: str = "",
    note: str = "",
    styles: Mapping[str, ModelStyle] | None = None,
    width: float = WIDTH,
) -> Figure:
    """Bars of energy (or any other count) by layer, grouped by model.

    The axis is linear, so that lengths compare truly; every bar has its number beside it, so that
    short ones can be read.

    Args:
        rows: Dicts with ``"model"``, ``"layer"`` and the value; with ``"part"`` too (such as
            ``"synapses"``, ``"neurons"``) the parts of one layer are stacked. A value that is None
            or NaN is shown as not counted.
        value: Key of the value.
        unit: Its unit, for which an SI prefix is chosen.
        quantity: What it is, for the axis.
        title: Shown above.
        note: Shown below: the source and basis of the joules, layers left out.
        styles: From `model_styles`, where the models are only some of a comparison's.
        width: In inches.

    Returns:
        The figure.

    Raises:
        ComparisonError: If there is no row, or a value is negative.
        MissingExtraError: If matplotlib is not installed.
    """
    bars = _stacked(list(rows), value)
    models = list(dict.fromkeys(model for model, _ in bars))
    styles = styles or model_styles(models)
    parts = list(dict.fromkeys(part for stack in bars.values() for part in stack))
    totals = [sum(amount or 0.0 for amount in stack.values()) for stack in bars.values()]
    factor, prefix = scale(totals)
    figure, (axes,) = new_figure(0.9 + 0.27 * (len(bars) + 1.1 * len(models)), width)
    ticks, y = {}, 0.0
    for model in models:
        own = {layer: stack for (name, layer), stack in bars.items() if name == model}
        every = [amount for stack in own.values() for amount in stack.values()]
        whole = _labelled(every, factor, f"{prefix}{unit} in all".strip())
        _heading(axes, y, model, styles[model].colour, whole)
        y += 1
        for layer, stack in own.items():
            start = 0.0
            for part, amount in stack.items():
                length = (amount or 0.0) / factor
                colour = _paled(styles[model].colour, parts.index(part))
                axes.barh(y, length, left=start, height=0.72, color=colour)
                start += length
            axes.annotate(
                _labelled(list(stack.values()), factor),
                (start, y),
                (3, 0),
                **BESIDE,
                fontsize=8,
                color=INK,
            )
            ticks[y] = layer
            y += 1
        y += 0.35
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.tick_params(axis="y", length=0)
    axes.set(
        ylim=(y - 0.6, -0.7),
        xlim=(0, 1.12 * max(totals) / factor or 1),
        xlabel=f"{quantity} ({prefix}{unit})" if prefix + unit else quantity,
    )
    axes.set_ylabel("layer")
    finish(figure, title, _swatches(parts) if parts != [""] else (), note)
    return figure


def _heading(axes: Axes, y: float, model: str, colour: str, amount: str) -> None:
    """A model's name in its colour, and its whole beside it."""
    name = axes.annotate(
        model,
        (0, y),
        (4, 0),
        xycoords=("axes fraction", "data"),
        **BESIDE,
        fontsize=9,
        color=colour,
        fontweight="bold",
    )
    axes.annotate(amount, (1, 0.5), (6, 0), xycoords=name, **BESIDE, fontsize=9, color=QUIET)


def _labelled(amounts: Sequence[float | None], factor: float, unit: str = "") -> str:
    """A sum as text, which says so if something in it was not counted."""
    known = [amount for amount in amounts if amount is not None]
    if not known:
        return "not counted"
    text = f"{number(float(sum(known)) / factor)} {unit}".rstrip()
    return text if len(known) == len(amounts) else f"{text} + not counted"


def _stacked(
    rows: Sequence[Mapping[str, Any]], value: str
) -> dict[tuple[str, str], dict[str, float | None]]:
    """Values by (model, layer), then by part; None for what was not counted."""
    bars: dict[tuple[str, str], dict[str, float | None]] = {}
    for row in rows:
        amount = row[value]
        known = amount is not None and not math.isnan(amount)
        if known and not 0 <= amount < math.inf:
            raise ComparisonError(
                f"The {value} of layer {row['layer']!r} of {row['model']!r} is {amount}; expected "
                "a finite number of at least 0, or None."
            )
        stack = bars.setdefault((row["model"], row["layer"]), {})
        stack[row.get("part", "")] = float(amount) if known else None
    if not bars:
        raise ComparisonError("There are no rows to draw; expected one for each layer of a model.")
    return bars


def _paled(colour: str, step: int) -> str:
    """A colour mixed with white, more so for each later part."""
    share = (1.0, 0.55, 0.3, 0.15)[min(step, 3)]
    channels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - share * (255 - channel)):02x}" for channel in channels)


def _swatches(parts: Sequence[str]) -> list[Any]:
    from matplotlib.patches import Patch

    return [Patch(color=_paled(QUIET, step), label=part) for step, part in enumerate(parts)]
