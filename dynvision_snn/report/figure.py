"""What all figures share: models' colours and lines, shaded time, notes below, files.

Every figure is a matplotlib ``Figure`` of its own, drawn without pyplot: nothing global is touched,
no display is needed, and a figure that goes out of use is gone. A model has one colour, line and
marker in all figures, by its place in the comparison; the colours are those of Okabe and Ito
("Color Universal Design", 2008), which readers with colour-blindness can tell apart, and lines and
markers differ in print without colour.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynvision_snn.errors import ComparisonError, MissingExtraError
from dynvision_snn.report.files import writing_file
from dynvision_snn.schedule import Interval, Phase

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BESIDE",
    "INK",
    "NARROW",
    "QUIET",
    "RULE_MARKERS",
    "WIDTH",
    "ModelStyle",
    "finish",
    "model_styles",
    "new_figure",
    "save_figure",
    "shade",
    "shown_name",
    "spans_decades",
    "to_svg",
]

WIDTH = 7.2
"""Inches; a README shows about 830 pixels."""
NARROW = 3.9
"""Inches; a phone shows about 360 pixels."""
INK, QUIET, SHADE, HATCH = "#222222", "#6b6b6b", "#ebebeb", "#b5b5b5"

# Okabe and Ito's colours, darkest on white first; their yellow is left out, too pale for a line.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
RULE_MARKERS = ("v", "o", "s", "^", "D", "P", "X", "*")
"""Of decision rules, by their order; the first is the settling time's."""
_DPI = 200
_CHARACTERS = 105 / WIDTH  # of a note or legend in one inch
_LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 9, "labelcolor": INK}
BESIDE: dict[str, Any] = {"textcoords": "offset points", "va": "center"}
_UNDATED: Mapping[str, Mapping[str, Any]] = {
    ".png": {},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}
# Text is drawn as paths, so that it looks alike everywhere; without a salt, ids are random.
_FILE_SETTINGS: Any = {"svg.hashsalt": "dynvision_snn"}


@dataclass(frozen=True)
class ModelStyle:
    """How a model is drawn in every figure.

    Attributes:
        colour: As ``"#rrggbb"``.
        dashes: A matplotlib line style.
        marker: A matplotlib marker.
    """

    colour: str
    dashes: str | tuple[int, tuple[float, ...]]
    marker: str


def model_styles(names: Iterable[str]) -> dict[str, ModelStyle]:
    """A colour, a line and a marker for each model, by its place among ``names``.

    Colours come again after seven models, with other lines.

    >>> model_styles(["snnTorch", "Norse"])["Norse"].colour
    '#D55E00'
    """
    lines, colours = len(_DASHES), len(_COLOURS)
    return {
        name: ModelStyle(
            _COLOURS[i % colours],
            _DASHES[(i % colours + i // colours) % lines],
            _MARKERS[i % len(_MARKERS)],
        )
        for i, name in enumerate(names)
    }


def new_figure(height: float, width: float = WIDTH, rows: Sequence[float] = (1.0,)) -> Any:
    """A figure and its panels, one below the other, with one time axis.

    Args:
        height: In inches.
        width: In inches.
        rows: Shares of the height.

    Returns:
        The figure, and a list of axes.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "Drawing a figure") from error
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    panels = figure.subplots(
        len(rows), sharex=len(rows) > 1, squeeze=False, gridspec_kw={"height_ratios": list(rows)}
    )
    for axes in panels.flat:
        axes.set_facecolor("none")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(QUIET)
        axes.tick_params(colors=INK, labelsize=9, color=QUIET, which="both")
    return figure, list(panels.flat)


def finish(figure: Figure, title: str, handles: Sequence[Any] = (), note: str = "") -> None:
    """Title above; legend and note below, where the figure grows by their height.

    Every text is shown as it is: a name with two dollar signs is no formula.

    Args:
        figure: From `new_figure`.
        title: Shown above, if any.
        handles: For the legend, in as many columns as fit.
        note: Small text at the very bottom: sources, basis, caveats.
    """
    from matplotlib.text import Text

    width, height = figure.get_size_inches()
    for axes in figure.axes:
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set(color=INK, fontsize=10)
    if title:
        wrapped = textwrap.fill(title, max(20, int(0.72 * width * _CHARACTERS)))
        figure.axes[0].set_title(wrapped, loc="left", fontsize=11, color=INK, fontweight="bold")
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    columns = max(1, min(5, int(width * _CHARACTERS) // (longest + 6)))
    columns = min(columns, max(1, len(handles)))
    lines = textwrap.wrap(note, int(width * _CHARACTERS * 1.15))
    noted = 0.13 * len(lines) + 0.05
    below = noted + 0.2 * math.ceil(len(handles) / columns) + 0.04
    total = height + below
    figure.set_size_inches(width, total)
    figure.get_layout_engine().set(rect=(0, below / total, 1, 1 - below / total))  # type: ignore[union-attr, call-arg]
    figure.text(
        0.06 / width, 0.04 / total, "\n".join(lines), va="bottom", fontsize=7.5, color=QUIET
    )
    if handles:
        figure.legend(
            handles=list(handles),
            loc="lower center",
            bbox_to_anchor=(0.5, noted / total),
            borderaxespad=0,
            ncols=columns,
            **_LEGEND,
        )
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    _lay_out(figure)


def _lay_out(figure: Figure) -> None:
    """Places the panels once and for all, to the same numbers in every process.

    The solver's last digits depend on the order of objects in memory, and ids inside an SVG depend
    on them.
    """
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = (round(value, 6) for value in axes.get_position().bounds)
        axes.set_position((left, bottom, width, height))


def shown_name(name: str) -> str:
    """A model's name for a legend, which would leave out names that begin with ``_``."""
    return f" {name}" if name.startswith("_") else name


def shade(
    axes: Axes,
    intervals: Sequence[Interval],
    stimuli: Sequence[tuple[float, float, int]],
    begin: float,
    end: float,
) -> list[Any]:
    """Shade stimuli, hatch reaction windows, dot idle time; one legend entry for each kind.

    Args:
        axes: Where.
        intervals: As ``Presentation.intervals()``.
        stimuli: As ``Presentation.stimulus_intervals()``.
        begin: What stops before it is not drawn.
        end: What starts after it is not drawn.

    Returns:
        Handles for a legend.
    """
    shades: dict[str, Any] = {}
    for start, stop, _ in stimuli:
        shades["stimulus shown"] = axes.axvspan(
            start, stop, facecolor=SHADE, linewidth=0, zorder=0, label="stimulus shown"
        )
    hatches = {Phase.REACTION: ("reaction window", "////"), Phase.IDLE: ("idle time", "...")}
    for start, stop, phase in intervals:
        if phase in hatches and start < end and stop > begin:
            label, hatch = hatches[phase]
            shades[label] = axes.axvspan(
                start,
                stop,
                facecolor="none",
                edgecolor=HATCH,
                hatch=hatch,
                linewidth=0,
                zorder=0.5,
                label=label,
            )
    return list(shades.values())


def spans_decades(values: Iterable[float]) -> bool:
    """Whether positive values are so far apart that only a logarithmic axis shows them all."""
    positive = [value for value in values if value > 0 and math.isfinite(value)]
    return bool(positive) and max(positive) > 20 * min(positive)


def save_figure(figure: Figure, path: str | Path, *, force: bool = False) -> None:
    """Write a figure whole or not at all, the same bytes for the same figure.

    Args:
        figure: Any matplotlib figure.
        path: Ends in ``.png``, ``.svg`` or ``.pdf``.
        force: Whether a file that is there is replaced.

    Raises:
        OutputError: If the file exists and ``force`` is not set, or cannot be written.
        ComparisonError: If the path ends otherwise.
    """
    import matplotlib

    suffix = Path(path).suffix.lower()
    if suffix not in _UNDATED:
        raise ComparisonError(
            f"{path} ends in {suffix!r}; expected a figure's file name to end in one of "
            f"{', '.join(_UNDATED)}."
        )
    with writing_file(path, force=force) as hidden, matplotlib.rc_context(_FILE_SETTINGS):
        figure.savefig(hidden, dpi=_DPI, metadata=dict(_UNDATED[suffix]))


def to_svg(figure: Figure, prefix: str) -> str:
    """A figure as SVG to stand inside a page: it takes the page's colours for ink and ground.

    Args:
        figure: Any figure of this package.
        prefix: Begins all ids in it, so that those of several figures stay apart.
    """
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context(_FILE_SETTINGS):
        figure.savefig(
            text, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'\bid="', f'id="{prefix}-', drawn)
    drawn = re.sub(r'(xlink:href="|url\()#', rf"\1#{prefix}-", drawn)
    for colour, name in ((INK, "ink"), (QUIET, "quiet"), (SHADE, "shade"), (HATCH, "hatch")):
        drawn = drawn.replace(colour, f"var(--{name})")
    drawn = drawn.replace("#000000", "var(--ink)").replace("#ffffff", "var(--ground)")
    # The page decides about the width; the height follows from the view box.
    return re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", drawn, count=1).replace(
        "<svg", "<svg role='img'", 1
    )
