"""Figures over time, energy and for one sample: what is drawn, and that nothing lies on a text."""

from __future__ import annotations

import math
import re
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynvision_snn.errors import ComparisonError
from dynvision_snn.presentation import Presentation
from dynvision_snn.report.anytime import accuracy_by_energy_spent
from dynvision_snn.report.figure import NARROW, WIDTH, model_styles, spans_decades, to_svg
from dynvision_snn.report.over_time import energy_and_accuracy_over_time
from dynvision_snn.report.page import Picture, Section, render
from dynvision_snn.report.pareto import accuracy_against_energy, pareto_front
from dynvision_snn.report.plots import accuracy_over_time
from dynvision_snn.report.tables import Column, lay_out
from dynvision_snn.report.traces import membrane_traces, spike_raster

pytest.importorskip("matplotlib")

P = Presentation("00111", dt=2.0, reaction_time=2.0, idle_time=4.0)
TIME = {"dt": P.dt, "intervals": P.intervals(), "stimuli": P.stimulus_intervals()}
NOTE = "chip (measured): a source whose name is long enough to need a second line. " * 3
NAMES = ["A", "a model with quite a long name", "_hidden", "$x_1$"]


def over_time(width=WIDTH):
    energies = {name: [0.0, 1e-9, 2e-9, 0.0, 4e-9, 3e-7, 1e-9] for name in NAMES}
    accuracies = {name: [0.1, 0.1, math.nan, 0.5, 1.0] for name in NAMES}
    return energy_and_accuracy_over_time(
        energies, accuracies, title="T", note=NOTE, width=width, **TIME
    )


def anytime(width=WIDTH):
    rules = {name: {"rule one": (2e-9, 0.5), "rule two": (math.nan, 0.0)} for name in NAMES}
    curves = {name: [(1e-9, 0.2), (3e-9, 0.9)] for name in NAMES}
    return accuracy_by_energy_spent(curves, rules=rules, title="T", note=NOTE, width=width)


def pareto(width=WIDTH):
    points = {"A": (1e-9, 0.8), "B": (2e-9, 0.9), "C": (3e-9, 0.85)}
    return accuracy_against_energy(
        points, spreads={"A": (1e-10, 0.01)}, title="T", note=NOTE, width=width
    )


def raster(width=WIDTH):
    layers = {"fc": (5, [(0, 0), (2, 3), (4, 4)]), "": (1, [])}
    return spike_raster(layers, n_timesteps=5, title="T", width=width, **TIME)


def membranes(width=WIDTH):
    values = [[0.0, 0.0], [0.1, 0.2], [0.2, 0.9], [0.1, 1.5], [0.0, 1.0]]
    return membrane_traces(
        values, answers=[1], onsets=[4.0], decisions={"rule": [3]}, title="T", width=width, **TIME
    )


FIGURES = [over_time, anytime, pareto, raster, membranes]


@pytest.mark.parametrize("width", [WIDTH, NARROW])
@pytest.mark.parametrize("draw", FIGURES)
def test_legend_note_axes_and_labels_do_not_lie_on_each_other(draw, width):
    figure = draw(width)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    assert figure.get_size_inches()[0] == width
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]
    boxes += [legend.get_window_extent(renderer) for legend in figure.legends]
    boxes += [text.get_window_extent(renderer) for text in figure.texts if text.get_text()]
    whole = figure.bbox
    for box in boxes:
        assert whole.x0 - 1 <= box.x0
        assert box.x1 <= whole.x1 + 1
        assert whole.y0 - 1 <= box.y0
        assert box.y1 <= whole.y1 + 1
    for one, other in combinations(boxes, 2):
        assert min(one.y1, other.y1) - max(one.y0, other.y0) < 2


@pytest.mark.parametrize("draw", FIGURES)
def test_a_figure_inside_a_page_takes_the_pages_colours_and_its_own_ids(draw):
    drawn = to_svg(draw(), "f7")
    assert drawn.startswith("<svg role='img'")
    ids = set(re.findall(r'\bid="([^"]+)"', drawn))
    assert ids
    assert all(name.startswith("f7-") for name in ids)
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', drawn)) <= ids
    for colour in ("#222222", "#6b6b6b", "#ebebeb", "#b5b5b5", "#000000", "#ffffff"):
        assert colour not in drawn
    assert "<metadata" not in drawn


def test_idle_time_comes_before_zero_and_has_no_accuracy():
    above, below = over_time().axes
    assert above.get_xlim() == (-4.0, 10.0)
    energy = next(line for line in below.lines if line.get_label() == "A")
    assert list(energy.get_xdata()) == [-4, -2, 0, 2, 4, 6, 8, 10]
    assert list(energy.get_ydata())[:3] == pytest.approx([0.0, 1.0, 2.0])
    accuracy = next(line for line in above.lines if line.get_label() == "A")
    assert all(math.isnan(value) for value in accuracy.get_ydata()[:2])
    assert list(accuracy.get_ydata())[-2:] == [100, 100]
    assert below.get_yscale() == "log"
    legend = [text.get_text().strip() for text in over_time().legends[0].get_texts()]
    assert legend == [*NAMES, "stimulus shown", "idle time", "reaction window"]


def test_curves_of_models_that_do_not_match_are_refused():
    with pytest.raises(ComparisonError, match="same models"):
        energy_and_accuracy_over_time({"A": [1.0]}, {"B": [1.0]}, dt=1.0)
    with pytest.raises(ComparisonError, match="same models"):
        energy_and_accuracy_over_time({}, {}, dt=1.0)
    with pytest.raises(ComparisonError, match="no curve has a point"):
        accuracy_by_energy_spent({"A": []})
    with pytest.raises(ComparisonError, match="no spiking layer"):
        spike_raster({}, n_timesteps=3, dt=1.0)
    with pytest.raises(ComparisonError, match="no timestep"):
        membrane_traces([], dt=1.0)
    with pytest.raises(ComparisonError, match="no point"):
        accuracy_against_energy({"A": (math.nan, 0.5)})


def test_decisions_lie_on_the_class_decided_for_and_onsets_are_marked():
    (axes,) = membranes().axes
    mark = next(line for line in axes.lines if line.get_label() == "rule")
    assert (list(mark.get_xdata()), list(mark.get_ydata())) == ([7.0], [1.5])
    assert [text.get_text() for text in axes.texts] == ["onset"]
    answer = next(line for line in axes.lines if line.get_label() == "class 1, the answer")
    assert list(answer.get_ydata()) == [0.0, 0.2, 0.9, 1.5, 1.0, 1.0]


def test_every_spike_has_a_mark_in_the_middle_of_its_timestep():
    first, second = raster().axes
    assert list(first.lines[0].get_xdata()) == [1.0, 5.0, 9.0]
    assert list(first.lines[0].get_ydata()) == [0, 3, 4]
    assert first.get_ylim() == (4.5, -0.5)
    assert second.get_ylabel() == "(model)\nunit"


def test_a_rule_has_one_mark_for_all_models_and_each_its_models_colour():
    styles = model_styles(NAMES)
    (axes,) = anytime().axes
    marks = [line for line in axes.lines if line.get_linestyle() == "None"]
    assert len({mark.get_marker() for mark in marks}) == 2
    assert [mark.get_markeredgecolor() for mark in marks[::2]] == [
        styles[name].colour for name in NAMES
    ]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8))
def test_the_front_is_all_that_nothing_beats(points):
    points = [(float(energy), float(accuracy)) for energy, accuracy in points]
    for (energy, accuracy), front in zip(points, pareto_front(points), strict=True):
        better = [
            (e, a)
            for e, a in points
            if (e < energy and a >= accuracy) or (e <= energy and a > accuracy)
        ]
        assert front == (not better)


def test_rounding_puts_nothing_on_the_front():
    """0.1 + 0.2 is a little more than 0.3."""
    assert pareto_front([(0.3, 0.5), (0.1 + 0.2, 0.7)]) == [False, True]
    assert pareto_front([(1.0, 0.3), (2.0, 0.1 + 0.2)]) == [True, False]


@pytest.mark.parametrize(
    ("values", "apart"),
    [([], False), ([1.0], False), ([1.0, 20.0], False), ([1.0, 21.0], True), ([0.0, 9.0], False)],
)
def test_a_logarithmic_axis_is_for_values_far_apart(values, apart):
    assert spans_decades(values) is apart


def test_a_page_shows_every_text_as_it_is():
    hostile = '<script>alert(1)</script> {{ 7 * 7 }} & "quoted"'
    grid = lay_out([{"a": hostile}], [Column("a", "name", note=hostile)])
    figure = to_svg(accuracy_over_time({hostile: [0.5]}, dt=1.0), "f")
    section = Section(hostile, [hostile], [grid], [Picture(figure, figure, hostile)], folded=True)
    page = render(hostile, [hostile], [hostile], [section])
    assert "<script" not in page
    assert "49" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)
    escaped = "&lt;script&gt;alert(1)&lt;/script&gt; {{ 7 * 7 }} &amp; "
    assert page.count(escaped) == 9
