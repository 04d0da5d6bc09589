"""Figures: what is drawn, read back from the figure, and that files hold a picture."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from dynvision_snn.errors import ComparisonError, OutputError
from dynvision_snn.presentation import Presentation
from dynvision_snn.report import accuracy_over_time, energy_by_layer, model_styles, save_figure

pytest.importorskip("matplotlib")

ROWS = [
    {"model": "A", "layer": "fc", "part": "synapses", "joules": 3e-9},
    {"model": "A", "layer": "fc", "part": "neurons", "joules": 1e-9},
    {"model": "A", "layer": "strange", "part": "synapses", "joules": None},
    {"model": "B", "layer": "fc", "part": "synapses", "joules": 5e-7},
]


def _texts(figure):
    figure.draw_without_rendering()
    axes = figure.axes[0]
    return [text.get_text() for text in [*axes.texts, *axes.get_yticklabels()]]


def test_28_models_differ_in_colour_or_line_and_keep_theirs():
    styles = model_styles(map(str, range(28)))
    assert len(set(styles.values())) == 28
    assert model_styles(["0", "1"]) == {name: styles[name] for name in "01"}


def test_a_curve_is_drawn_in_percent_as_a_step_over_each_timestep():
    p = Presentation("00111", dt=2.0, reaction_time=2.0, idle_time=4.0)
    figure = accuracy_over_time(
        {"A": [0.1, 0.1, math.nan, 0.5, 1.0], "B": [0.0] * 5},
        dt=p.dt,
        intervals=p.intervals(),
        stimuli=p.stimulus_intervals(),
        chance=0.1,
        title="Digits",
    )
    axes = figure.axes[0]
    first = axes.lines[0]
    assert first.get_drawstyle() == "steps-post"
    assert list(first.get_xdata()) == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    assert list(first.get_ydata())[3:] == [50.0, 100.0, 100.0]
    assert axes.get_xlim() == (0.0, 10.0)
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]
    assert spans == [(4.0, 10.0), (4.0, 6.0)]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "A",
        "B",
        "stimulus shown",
        "reaction window",
    ]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("time (ms)", "accuracy (%)")


def test_curves_that_do_not_fit_each_other_are_refused():
    with pytest.raises(ComparisonError, match="same length"):
        accuracy_over_time({"A": [0.1], "B": [0.1, 0.2]}, dt=1.0)
    with pytest.raises(ComparisonError, match="at least one"):
        accuracy_over_time({}, dt=1.0)
    with pytest.raises(ComparisonError, match="above 0"):
        accuracy_over_time({"A": []}, dt=1.0)


def test_bars_stack_to_the_numbers_beside_them():
    figure = energy_by_layer(ROWS, note="loihi: source", title="Energy")
    axes = figure.axes[0]
    assert axes.get_xlabel() == "energy per sample (nJ)"
    ends = {(round(bar.get_x(), 6), round(bar.get_width(), 6)) for bar in axes.patches}
    assert ends == {(0.0, 3.0), (3.0, 1.0), (0.0, 0.0), (0.0, 500.0)}
    texts = _texts(figure)
    for expected in ["4.00", "not counted", "500", "4.00 nJ in all + not counted", "500 nJ in all"]:
        assert expected in texts
    assert texts.count("fc") == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["synapses", "neurons"]


def test_a_model_has_the_same_colour_in_every_figure():
    styles = model_styles(["other", "A", "B"])
    bars = energy_by_layer(ROWS, styles=styles).axes[0].patches
    lines = accuracy_over_time({"B": [0.1]}, dt=1.0, styles=styles).axes[0].lines
    from matplotlib.colors import to_hex

    assert to_hex(bars[-1].get_facecolor()).upper() == styles["B"].colour
    assert lines[0].get_color() == styles["B"].colour


def test_counts_without_a_unit_and_all_zero_are_drawn():
    figure = energy_by_layer(
        [{"model": "A", "layer": "fc", "spikes": 0}], value="spikes", unit="", quantity="spikes"
    )
    assert figure.axes[0].get_xlabel() == "spikes"
    assert "0 in all" in _texts(figure)


@pytest.mark.parametrize("amount", [-1e-9, math.inf])
def test_energies_that_cannot_be_are_refused(amount):
    with pytest.raises(ComparisonError, match="'fc' of 'A'"):
        energy_by_layer([{"model": "A", "layer": "fc", "joules": amount}])
    with pytest.raises(ComparisonError, match="no rows"):
        energy_by_layer([])


@pytest.mark.parametrize(
    ("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")]
)
def test_a_saved_figure_is_a_picture_and_always_the_same_bytes(tmp_path, suffix, magic):
    contents = []
    for name in ("one", "two"):
        path = tmp_path / f"{name}{suffix}"
        save_figure(energy_by_layer(ROWS), path)
        contents.append(path.read_bytes())
    assert contents[0].startswith(magic)
    assert contents[0] == contents[1]
    with pytest.raises(OutputError, match="exists already"):
        save_figure(energy_by_layer(ROWS), tmp_path / f"one{suffix}")


def test_a_file_name_that_is_no_picture_is_refused(tmp_path):
    with pytest.raises(ComparisonError, match=r"\.jpeg"):
        save_figure(energy_by_layer(ROWS), tmp_path / "a.jpeg")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("library", "call", "extra"),
    [
        ("matplotlib", "report.accuracy_over_time({'A': [0.1]}, dt=1.0)", "dynvision-snn[plot]"),
        ("rich", "report.to_text(report.lay_out([], [report.Column('a', 'a')]))", "[report]"),
    ],
)
def test_a_missing_library_is_an_error_that_says_what_to_install(library, call, extra):
    code = f"import sys; sys.modules[{library!r}] = None\nfrom dynvision_snn import report\n{call}"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 1
    assert shown.stderr.splitlines()[-1].startswith("dynvision_snn.errors.MissingExtraError")
    assert extra in shown.stderr.splitlines()[-1]
