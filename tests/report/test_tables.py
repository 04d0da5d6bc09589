"""Tables: what a cell says, which footnote it carries, and that everything fits the width."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynvision_snn.report import Column, Noted, lay_out, to_text
from dynvision_snn.report.numbers import NO_VALUE, number, scale

MODEL = Column("model", "model")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0, "0"),
        (12345, "12,345"),
        (1234.5, "1,234"),
        (0.99951, "1.00"),
        (99.96, "100"),
        (1.0, "1.00"),
        (-0.01234, "-0.0123"),
        (3.21e-9, "3.21e-09"),
        (1.5e12, "1.50e+12"),
        (None, NO_VALUE),
        (math.nan, NO_VALUE),
        (math.inf, "∞"),
        (-math.inf, "-∞"),
        (True, "True"),
        ("text", "text"),
    ],
)
def test_numbers_are_shown_with_three_digits(value, text):
    assert number(value) == text


@given(st.floats(1e-4, 1e6))
def test_a_shown_number_is_within_its_last_digit(value):
    shown = float(number(value).replace(",", ""))
    assert shown == pytest.approx(value, rel=0.5e-2 + 1e-9)


@given(st.lists(st.floats(0, 1e14), min_size=1))
def test_a_scale_is_exact_and_brings_the_largest_between_1_and_1000(values):
    factor, prefix = scale([*values, None, math.nan])
    assert {"f": 1e-15, "p": 1e-12, "n": 1e-9, "µ": 1e-6, "m": 1e-3, "": 1.0}.get(
        prefix, {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(prefix)
    ) == pytest.approx(factor)
    if max(values) >= 1e-15:
        assert 0.9995 <= max(values) / factor < 999.5


def test_999_7_is_shown_with_the_next_prefix():
    assert scale([0.9997]) == (1.0, "")
    assert scale([9.997e-7]) == pytest.approx((1e-6, "µ")) or scale([9.997e-7])[1] == "µ"


def test_one_prefix_serves_a_whole_column_and_percent_is_a_share():
    rows = [{"model": "A", "e": 1.5e-9, "a": 0.975}, {"model": "B", "e": 2.5e-6, "a": None}]
    grid = lay_out(
        rows, [MODEL, Column("e", "energy", "J", si=True), Column("a", "right", "%", decimals=1)]
    )
    assert grid.header == ("model", "energy (µJ)", "right (%)")
    assert grid.body == (("A", "0.00150", "97.5"), ("B", "2.50", NO_VALUE))
    assert grid.is_number == (False, True, True)


def test_equal_footnotes_share_a_mark_and_every_mark_is_explained():
    rows = [
        {"model": f"m{i}", "e": Noted(i, f"note {i // 2}"), "f": Noted(None, "note 0")}
        for i in range(14)
    ]
    columns = [MODEL, Column("e", "e", note="source"), Column("f", "f")]
    grid = lay_out(rows, columns, notes=["in general"])
    marks = dict(grid.footnotes[:-1])
    assert sorted(marks.values()) == sorted(["source", *(f"note {i}" for i in range(7))])
    assert len(marks) == 8
    assert grid.footnotes[-1] == ("", "in general")
    explained = {text: mark for mark, text in marks.items()}
    assert grid.header[1] == "e" + explained["source"]
    for i, row in enumerate(grid.body):
        assert row[1] == f"{i}{explained[f'note {i // 2}']}"
        assert row[2] == NO_VALUE + explained["note 0"]


def test_transposing_twice_changes_no_cell():
    grid = lay_out([{"model": "A", "e": 1}, {"model": "B", "e": 2}], [MODEL, Column("e", "e")])
    turned = grid.transposed()
    assert turned.header == ("model", "A", "B")
    assert turned.body == (("e", "1", "2"),)
    again = turned.transposed()
    assert (again.header, again.body) == (grid.header, grid.body)


words = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=9)


@given(
    st.lists(st.lists(words, min_size=1, max_size=3).map(" ".join), min_size=1, max_size=14),
    st.integers(1, 9),
    st.sampled_from([40, 80, 120]),
)
def test_a_table_fits_the_width_and_loses_no_cell(titles, n_rows, width):
    columns = [MODEL, *(Column(f"k{i}", title) for i, title in enumerate(titles))]
    rows = [
        {"model": f"model-{row}", **{f"k{i}": 1000 * row + i for i in range(len(titles))}}
        for row in range(n_rows)
    ]
    grid = lay_out(rows, columns)
    text = to_text(grid, title="A title", width=width)
    assert all(len(line) <= width for line in text.splitlines())
    shown = text.split()
    for row in grid.body:
        for cell in row:
            assert cell in shown


def test_a_long_name_folds_and_brackets_are_no_markup():
    rows = [{"model": "[bold]" + "x" * 90, "e": 1.25}]
    text = to_text(lay_out(rows, [MODEL, Column("e", "energy", note="[red]source")]))
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "[bold]" in text
    assert text.count("x") == 90
    assert "* [red]source" in text
    assert "1.25" in text


def test_a_table_without_rows_shows_its_headings():
    text = to_text(lay_out([], [MODEL, Column("e", "energy", "J", si=True)]))
    assert "energy (J)" in text
