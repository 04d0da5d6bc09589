"""Tables of plain rows: laid out once as text, then shown in a terminal of a given width.

`lay_out` turns rows (dicts) and columns into a `Grid` of strings with its footnotes; every output
form renders the same grid. In a terminal a grid that is too wide is turned on its side, and cut
into several below each other if that does not help: nothing is ever cut off.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

from dynvision_snn.errors import MissingExtraError
from dynvision_snn.report.numbers import MeanSD, number, scale

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Column", "Grid", "Noted", "lay_out", "terminal_table", "to_text"]

_MARKS = "*†‡§¶"
_BETWEEN_COLUMNS = 2
_WIDEST_NAME = 28


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        key: Where its value is in a row; a row without it has no value there.
        title: Its heading.
        unit: Unit of the values, shown in the heading. ``"%"`` shows shares of 1 as percent.
        si: Show all values with one SI prefix, so that they read between 1 and 1000.
        digits: Significant digits.
        decimals: Digits after the point, instead.
        note: A footnote on the column: source, basis, caveat.
    """

    key: str
    title: str
    unit: str = ""
    si: bool = False
    digits: int = 3
    decimals: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Noted:
    """A value in a row with a footnote of its own."""

    value: Any
    note: str


@dataclass(frozen=True)
class Grid:
    """A table as text: what every output form renders.

    Attributes:
        header: Heading of each column.
        body: Rows of cells.
        is_number: Of each column, whether it is aligned to the right.
        footnotes: Pairs of mark and text; the mark of a general note is empty.
    """

    header: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    is_number: tuple[bool, ...]
    footnotes: tuple[tuple[str, str], ...] = ()

    def transposed(self) -> Grid:
        """Columns as rows: the first column's cells become the headings."""
        header, *body = zip(self.header, *self.body, strict=True)
        aligned = (False, *[True] * (len(header) - 1))
        return replace(self, header=tuple(header), body=tuple(body), is_number=aligned)

    def with_columns(self, kept: Sequence[int]) -> Grid:
        """Some of the columns, in the order given."""
        return replace(
            self,
            header=tuple(self.header[i] for i in kept),
            body=tuple(tuple(row[i] for i in kept) for row in self.body),
            is_number=tuple(self.is_number[i] for i in kept),
        )


def lay_out(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[Column], *, notes: Iterable[str] = ()
) -> Grid:
    """Rows as a grid of text.

    Args:
        rows: Plain dicts; a value may be `Noted`. None and NaN show as a dash.
        columns: What is shown, in order; the first names the row.
        notes: Footnotes on the table as a whole.

    Returns:
        The grid, equal footnotes sharing one mark.

    >>> grid = lay_out(
    ...     [{"model": "A", "energy": 2e-9}, {"model": "B", "energy": Noted(None, "not priced")}],
    ...     [Column("model", "model"), Column("energy", "energy", unit="J", si=True)])
    >>> grid.header, grid.body
    (('model', 'energy (nJ)'), (('A', '2.00'), ('B', '–*')))
    """
    rows = list(rows)
    marks: dict[str, str] = {}
    header, cells, is_number = [], [], []
    for column in columns:
        values = [row.get(column.key) for row in rows]
        plain = [value.value if isinstance(value, Noted) else value for value in values]
        factor, unit = _unit(column, plain)
        heading = f"{column.title} ({unit})" if unit else column.title
        header.append(heading + _mark(column.note, marks))
        cells.append(
            [
                number(_scaled(value, factor), digits=column.digits, decimals=column.decimals)
                + _mark(noted.note if isinstance(noted, Noted) else "", marks)
                for value, noted in zip(plain, values, strict=True)
            ]
        )
        is_number.append(
            all(value is None or isinstance(value, MeanSD) or _is_real(value) for value in plain)
        )
    footnotes = [*((mark, text) for text, mark in marks.items()), *(("", text) for text in notes)]
    return Grid(tuple(header), tuple(zip(*cells, strict=True)), tuple(is_number), tuple(footnotes))


def terminal_table(grid: Grid, *, title: str = "", width: int = 80) -> RenderableType:
    """A grid for rich, no wider than a terminal.

    Args:
        grid: From `lay_out`.
        title: Shown above it.
        width: Characters of a line.

    Returns:
        Something that a ``rich.console.Console`` prints.

    Raises:
        MissingExtraError: If rich is not installed.
    """
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Group
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text
    except ImportError as error:
        raise MissingExtraError("rich", "report", "A table in the terminal") from error

    parts: list[RenderableType] = [Text(title, style="bold")] if title else []
    for block in _fitted(grid, width):
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for i, column_width in enumerate(_widths(block, width)):
            # Text, not str: a model's name in brackets is no markup.
            table.add_column(
                Text(block.header[i]),
                justify="right" if block.is_number[i] else "left",
                width=column_width,
                overflow="fold",
                vertical="bottom",
            )
        for row in block.body:
            table.add_row(*map(Text, row))
        parts.append(Padding(table, (0, 0, 1, 0)))
    for mark, text in grid.footnotes:
        parts.append(Text(f"{mark} {text}".strip(), style="dim"))
    return Group(*parts)


def to_text(grid: Grid, *, title: str = "", width: int = 80) -> str:
    """A grid as plain text, as a terminal of that width without colours shows it.

    Args:
        grid: From `lay_out`.
        title: Shown above it.
        width: Characters of a line.

    Raises:
        MissingExtraError: If rich is not installed.

    >>> grid = lay_out([{"a": "x", "n": 12}], [Column("a", "name"), Column("n", "spikes")])
    >>> print(to_text(grid))
    name  spikes
    ────────────
    x         12
    """
    table = terminal_table(grid, title=title, width=width)
    from rich.console import Console

    console = Console(width=width, color_system=None, force_terminal=False, record=False)
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    return "\n".join(lines).strip("\n") + "\n"


def _unit(column: Column, values: Sequence[Any]) -> tuple[float, str]:
    """What a column's values are divided by, and the unit that they then have."""
    if column.unit == "%":
        return 0.01, "%"
    if not column.si:
        return 1.0, column.unit
    means = (value.mean if isinstance(value, MeanSD) else value for value in values)
    factor, prefix = scale(value for value in means if _is_real(value))
    return factor, prefix + column.unit


def _scaled(value: Any, factor: float) -> Any:
    shown = isinstance(value, MeanSD) or _is_real(value)
    return value / factor if shown and factor != 1 else value


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _mark(note: str, marks: dict[str, str]) -> str:
    """The mark of a footnote, a new one if its text is new."""
    if not note:
        return ""
    count = len(marks)
    return marks.setdefault(note, _MARKS[count % len(_MARKS)] * (1 + count // len(_MARKS)))


def _widths(grid: Grid, width: int) -> list[int]:
    """Width of each column: its longest cell or heading, which breaks at spaces if it has to."""
    for breaks in (False, True):
        widths = []
        for i, heading in enumerate(grid.header):
            parts = heading.split() if breaks else [heading]
            widths.append(max(1, *map(len, parts), *(len(row[i]) for row in grid.body)))
        if _needed(widths) <= width:
            return widths
    return [min(widths[0], _WIDEST_NAME), *widths[1:]]


def _needed(widths: Sequence[int]) -> int:
    return sum(widths) + _BETWEEN_COLUMNS * (len(widths) - 1)


def _fitted(grid: Grid, width: int) -> Iterator[Grid]:
    """The grid, or it on its side, or pieces of it, none wider than ``width``."""
    for candidate in (grid, grid.transposed()):
        if _needed(_widths(candidate, width)) <= width:
            yield candidate
            return
    widths = _widths(grid, width)
    piece = [0]
    for i in range(1, len(widths)):
        if len(piece) > 1 and _needed([widths[j] for j in [*piece, i]]) > width:
            yield grid.with_columns(piece)
            piece = [0]
        piece.append(i)
    yield grid.with_columns(piece)
