"""A comparison as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dynvision_snn.comparison import drawing, telling
from dynvision_snn.energy.showing import layer_grid
from dynvision_snn.report.figure import NARROW, WIDTH, to_svg
from dynvision_snn.report.page import Picture, Section, render
from dynvision_snn.report.tables import Column, lay_out

if TYPE_CHECKING:
    from dynvision_snn.comparison.comparison import Comparison

__all__ = ["page"]

_LONGEST_TITLE = 60
_BY_SAMPLE = ("membrane", "raster")


def page(comparison: Comparison) -> str:
    """The report as HTML: tables, figures, layers, sources and the environment."""
    first, *others = telling.tables(comparison)
    named = f"{comparison.name}: " if comparison.name else ""
    names = ", ".join(comparison.runs)
    title = f"{named}{names if len(names) <= _LONGEST_TITLE else first.title}"
    lead = list(telling.presented(comparison))
    general = [t for t in others if t.key == "ratios"]
    detailed = [t for t in others if t.key != "ratios"]
    pictures = dict(_pictures(comparison))
    sections = [
        Section("Comparison", tables=[first.grid]),
        *(Section(table.title, tables=[table.grid]) for table in general),
        Section(
            "Figures",
            pictures=[p for name, p in pictures.items() if not name.startswith(_BY_SAMPLE)],
        ),
        *(Section(table.title, tables=[table.grid]) for table in detailed),
        Section(
            "One sample",
            pictures=[p for name, p in pictures.items() if name.startswith(_BY_SAMPLE)],
        ),
        *_layers(comparison),
        _environments(comparison),
    ]
    return render(title, lead, comparison.differences, sections)


def _pictures(comparison: Comparison) -> Iterator[tuple[str, Picture]]:
    wide, narrow = (drawing.figures(comparison, w, noted=False) for w in (WIDTH, NARROW))
    for number, (name, drawn) in enumerate(wide.items()):
        yield (
            name,
            Picture(
                to_svg(drawn.figure, f"w{number}"),
                to_svg(narrow[name].figure, f"n{number}"),
                f"{drawn.caption} {drawn.note}".strip(),
            ),
        )


def _layers(comparison: Comparison) -> Iterator[Section]:
    for name, runs in comparison.runs.items():
        budget = runs[0].budget
        notes = [f"Of the first of {len(runs)} runs."] if len(runs) > 1 else []
        grid = layer_grid([*budget.layers, budget.total], budget.uncounted, notes)
        yield Section(f"Layers of {name}", tables=[grid], folded=True)


def _environments(comparison: Comparison) -> Section:
    rows = [
        {"model": name, "data": str(runs[0].data), **runs[0].environment}
        for name, runs in comparison.runs.items()
    ]
    columns = [Column(key, key) for key in dict.fromkeys(key for row in rows for key in row)]
    grid = lay_out(rows, columns).transposed()
    return Section("Where the numbers are from", tables=[grid], folded=True)
