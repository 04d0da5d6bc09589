"""Comparisons: what their rows say, what they refuse, and that files bring back the same."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from dataclasses import replace

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dynvision_snn as dvs
from dynvision_snn.comparison import join, load, load_all, rebuild
from dynvision_snn.comparison.saving import write_derived
from dynvision_snn.decision import MembraneMargin, SoftmaxConfidence
from dynvision_snn.errors import ComparisonError, EnergyError, OutputError, WrapError
from dynvision_snn.report.figure import model_styles
from dynvision_snn.report.markup import latex_text, markdown_text
from dynvision_snn.report.numbers import MeanSD

FEATURES, CLASSES, DT = 6, 4, 1.0
P = dvs.Presentation("0011110", dt=DT, reaction_time=1.0, idle_time=3.0)
RULES = {"sure": SoftmaxConfidence(0.26), "margin": MembraneMargin(0.1)}


def spiking(seed=0, units=9):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(FEATURES, units),
        snn.Leaky(beta=0.8, threshold=0.3, init_hidden=True),
        nn.Linear(units, CLASSES),
        snn.Leaky(beta=0.8, threshold=0.4, init_hidden=True, output=True),
    )


def analog(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 30), nn.ReLU(), nn.Linear(30, CLASSES))


class Uncounted(nn.Module):
    """A model with a layer that nobody has a rule for."""

    def __init__(self):
        super().__init__()
        self.first, self.act = nn.Linear(FEATURES, 5), nn.ReLU()
        self.odd = nn.Bilinear(5, 5, 5)
        self.last = nn.Linear(5, CLASSES)

    def forward(self, x):
        x = self.act(self.first(x))
        return self.last(self.odd(x, x))


def wrapped(net):
    return dvs.wrap(net, dt=DT)


def loader(seed=3, n=20):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, FEATURES, generator=generator)
    return [(images, torch.randint(CLASSES, (n,), generator=generator))]


def compared(**kwargs):
    models = {
        "spiking": [wrapped(spiking(seed)) for seed in range(3)],
        "analog": wrapped(analog()),
    }
    settings = {"rules": RULES, "baseline": "analog", "profiles": ["45nm-fp32", "loihi"]}
    return dvs.compare(models, loader(), P, progress=False, **{**settings, **kwargs})


@pytest.fixture(scope="module")
def comparison():
    return compared()


@pytest.fixture(scope="module")
def saved(comparison, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "results"
    comparison.save(folder)
    return folder


# -- rows ------------------------------------------------------------------------------------------


def test_rows_are_what_simulations_say(comparison):
    run = dvs.simulate(wrapped(analog()), loader(), P, rules=RULES)
    row = next(row for row in comparison.rows() if row["model"] == "analog")
    total = run.budget.total
    expected = {
        "accuracy": run.accuracy,
        "accuracy_last": run.accuracy_last,
        "accuracy_null": run.accuracy_by_phase["null"],
        "accuracy_reaction": run.accuracy_by_phase["reaction"],
        "settling_time": run.settling_time,
        "firing_rate": None,
        "spikes": 0.0,
        "synops_ac": total.synops_ac,
        "synops_mac": total.synops_mac,
        "synops_dense": total.synops_dense,
        "neuron_updates": total.neuron_updates,
        "joules[45nm-fp32]": float(run.budget.joules("45nm-fp32")),
        "joules[45nm-fp32][mac]": run.budget.joules("45nm-fp32", by="term")["mac"],
        "joules[loihi]": None,  # it has no figure for a MAC
        "n_parameters": FEATURES * 30 + 30 + 30 * CLASSES + CLASSES,
        "model_bytes": 4 * (FEATURES * 30 + 30 + 30 * CLASSES + CLASSES),
        "uncounted": "",
        "runs": 1,
    }
    assert {key: row[key] for key in expected} == pytest.approx(expected, nan_ok=True)
    for name in RULES:
        moment = run.moments[name]
        assert row[f"reached[{name}]"] == moment.reached
        assert row[f"accuracy[{name}]"] == moment.accuracy
        if moment.reached:
            assert row[f"decision_time[{name}]"] == pytest.approx(moment.time)
            until = row[f"joules_until[45nm-fp32][{name}]"]
            assert until == pytest.approx(moment.joules("45nm-fp32"))


def test_several_runs_are_told_as_mean_and_standard_deviation(comparison):
    runs = [dvs.simulate(wrapped(spiking(seed)), loader(), P) for seed in range(3)]
    row = next(row for row in comparison.rows() if row["model"] == "spiking")
    for key, each in {
        "accuracy": [run.accuracy for run in runs],
        "firing_rate": [run.budget.total.firing_rate for run in runs],
        "joules[45nm-fp32]": [float(run.budget.joules("45nm-fp32")) for run in runs],
    }.items():
        assert row[key] == pytest.approx(statistics.fmean(each))
        assert row[f"{key}_sd"] == pytest.approx(statistics.stdev(each))
    assert row["runs"] == 3
    assert row["n_parameters"] == 103
    assert "n_parameters_sd" not in row


def test_ratios_are_to_the_baseline_and_break_even_costs_the_same(comparison):
    rows = {row["model"]: row for row in comparison.rows()}
    for key in ("joules[45nm-fp32]", "n_parameters", "synops_dense"):
        ratio = rows["spiking"][key] / rows["analog"][key]
        assert rows["spiking"][f"{key}_ratio"] == pytest.approx(ratio)
        assert rows["analog"][f"{key}_ratio"] == 1
    assert rows["spiking"]["joules[loihi]_ratio"] is None
    assert rows["spiking"]["neuron_updates_ratio"] is None  # the baseline has none
    run, base = comparison.runs["spiking"][0], comparison.runs["analog"][0]
    one = dvs.Comparison({"spiking": run, "analog": base}, baseline="analog").rows()[0]
    # All that spikes cause, scaled by the factor, makes up the difference.
    total, figures = run.budget.total, dvs.hardware_profiles()["45nm-fp32"]
    rest = float(run.budget.joules("45nm-fp32")) - figures.ac * total.synops_ac
    factor = one["break_even_factor[45nm-fp32]"]
    same = rest + factor * figures.ac * total.synops_ac
    assert same == pytest.approx(float(base.budget.joules("45nm-fp32")))
    assert one["break_even_rate[45nm-fp32]"] == pytest.approx(factor * total.firing_rate)


def test_break_even_is_with_the_mean_of_the_baselines_runs(comparison):
    bases = dvs.compare({"b": [wrapped(spiking(seed)) for seed in (7, 8)]}, loader(), P)
    run, others = comparison.runs["spiking"][0], bases.runs["b"]
    row = dvs.Comparison({"one": run, "b": others}, baseline="b").rows()[0]
    # ACs alone grow with the factor, on a profile that has no figure for updates and spikes.
    ac = dvs.hardware_profiles()["45nm-fp32"].ac
    theirs = statistics.fmean(float(other.budget.joules("45nm-fp32")) for other in others)
    missing = theirs - float(run.budget.joules("45nm-fp32"))
    factor = 1 + missing / (ac * run.budget.total.synops_ac)
    assert row["break_even_factor[45nm-fp32]"] == pytest.approx(factor)


def test_the_front_is_what_no_other_model_beats():
    cheap, dear = spiking(units=3), spiking(units=40)
    got = dvs.compare({"cheap": wrapped(cheap), "dear": wrapped(dear)}, loader(), P)
    rows = {row["model"]: row for row in got.rows()}
    points = {n: (r["joules[45nm-fp32]"], r["accuracy_last"]) for n, r in rows.items()}
    for name, (energy, accuracy) in points.items():
        beaten = any(
            e <= energy and a >= accuracy and (e, a) != (energy, accuracy)
            for e, a in points.values()
        )
        assert rows[name]["pareto[45nm-fp32]"] is not beaten


def test_an_uncounted_layer_and_an_unpriced_model_are_said_everywhere(tmp_path):
    models = {"odd": wrapped(Uncounted()), "analog": wrapped(analog())}
    profiles = ["truenorth", "45nm-fp32"]
    got = dvs.compare(models, loader(), P, profiles=profiles, baseline="odd")
    rows = {row["model"]: row for row in got.rows()}
    assert rows["odd"]["uncounted"] == "odd"
    table = got.table()
    main, ratios = table.split("Ratios to odd")
    assert "Energies and SynOps of odd are without" in ratios
    assert re.search(r"Pareto front, 45nm-fp32\S*\s+(yes|no)[^\w\s]", main)
    assert "By an energy without the layers that are not counted" in main
    assert re.search(r"not counted\s+odd\s+–", table)
    assert "without the layers that are not counted" in table
    assert "has no figure for some of its synaptic" in table
    assert "Merolla et al., Science 2014" in table
    got.save(tmp_path / "out")
    for name in ("table.md", "table.tex", "table.csv", "report.html"):
        text = (tmp_path / "out" / name).read_text()
        assert "Merolla et al., Science 2014" in text
        assert "not counted" in text or "uncounted" in text


def test_no_joule_is_shown_without_its_source(comparison, saved):
    sources = ["Horowitz, ISSCC 2014", "Davies et al., IEEE Micro 2018"]
    for name in ("table.txt", "table.md", "table.tex", "table.csv", "report.html"):
        text = " ".join((saved / name).read_text().split())
        for source in sources:
            assert source in text, name
    assert comparison.table().count("Horowitz, ISSCC 2014") == 1
    for name, figure in comparison.plot().items():
        if any("J" in axes.get_xlabel() + axes.get_ylabel() for axes in figure.axes):
            shown = " ".join(text.get_text().replace("\n", " ") for text in figure.texts)
            assert sources[0] in shown, name


@pytest.mark.parametrize("width", [80, 60])
def test_the_table_fits_the_terminal(comparison, width):
    text = comparison.table(width)
    assert max(map(len, text.splitlines())) <= width
    for word in ("accuracy, last (%)", "settling (ms)", "rate (Hz)", "memory", "Ratios to analog"):
        assert word in text


def test_a_frame_and_a_notebook_show_the_rows(comparison):
    frame = comparison.to_pandas()
    assert list(frame["model"]) == ["spiking", "analog"]
    assert frame["accuracy"].tolist() == [row["accuracy"] for row in comparison.rows()]
    shown = comparison._repr_html_()
    assert "<table>" in shown
    assert "Horowitz" in shown
    assert "<table>" in comparison.runs["analog"][0].budget._repr_html_()


# -- what does not belong together -----------------------------------------------------------------


def test_models_on_different_samples_are_refused():
    def once():
        yield from loader()

    generator = iter([loader(seed=3)[0], loader(seed=4)[0]])

    class Changing:
        def __iter__(self):
            return iter([next(generator)])

    models = {"a": wrapped(analog()), "b": wrapped(analog())}
    with pytest.raises(ComparisonError, match="other samples"):
        dvs.compare(models, Changing(), P)
    with pytest.raises(ValueError, match="no batch"):
        dvs.compare(models, once(), P)


def test_shuffled_samples_with_presentations_of_their_own_are_refused():
    (images, labels), *_ = loader()
    each = dvs.PresentationBatch([dvs.Presentation("01" + "1" * (i % 5), DT) for i in range(20)])
    models = {"a": wrapped(analog()), "b": wrapped(analog())}
    samples = TensorDataset(images, labels)
    shuffled = DataLoader(
        samples, batch_size=7, shuffle=True, generator=torch.Generator().manual_seed(0)
    )
    with pytest.raises(ComparisonError, match="no shuffling"):
        dvs.compare(models, shuffled, each, progress=False)
    dvs.compare(models, DataLoader(samples, batch_size=7), each, progress=False)
    dvs.compare(models, shuffled, P, progress=False)


def test_a_model_that_is_not_wrapped_is_refused_as_a_whole():
    with pytest.raises(WrapError, match="received a Sequential"):
        dvs.compare({"bare": analog()}, loader(), P, progress=False)


def test_a_name_without_a_model_is_refused():
    with pytest.raises(ComparisonError, match="at least one run"):
        dvs.compare({"a": wrapped(analog()), "b": []}, loader(), P)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"runs": {}}, "at least one model"),
        ({"runs": {"a": []}}, "at least one run"),
        ({"profiles": []}, "at least one hardware profile"),
        ({"profiles": ["loihi", "loihi"]}, "each once"),
        ({"baseline": "analogue"}, "Did you mean 'analog'"),
    ],
)
def test_what_cannot_be_compared_is_refused(comparison, arguments, reason):
    given = {"runs": comparison.runs, "profiles": ["loihi"], **arguments}
    with pytest.raises(ComparisonError, match=reason):
        dvs.Comparison(given.pop("runs"), given.pop("profiles"), **given)


def test_an_unknown_profile_and_runs_that_differ_are_refused(comparison):
    with pytest.raises(EnergyError, match="Did you mean 'loihi'"):
        dvs.Comparison(comparison.runs, ["lohi"])
    other = dvs.Presentation("00111100", dt=DT)
    changed = dvs.simulate(wrapped(spiking()), loader(), other)
    with pytest.raises(ComparisonError, match="differ in presentation"):
        dvs.Comparison({"a": [comparison.runs["spiking"][0], changed]})
    bigger = dvs.simulate(wrapped(spiking(units=10)), loader(), P, rules=RULES)
    with pytest.raises(ComparisonError, match="differ in parameters"):
        dvs.Comparison({"a": [comparison.runs["spiking"][0], bigger]})


# -- files -----------------------------------------------------------------------------------------


def test_a_folder_has_every_form_and_each_is_what_it_says(comparison, saved):
    names = {path.name for path in saved.iterdir()}
    figures = {"accuracy", "time", "energy", "pareto", "anytime"}
    figures |= {"membrane-spiking", "membrane-analog", "raster-spiking"}
    drawn = {f"{name}.{suffix}" for name in figures for suffix in ("png", "svg")}
    tables = {
        "comparison.json",
        "report.html",
        *(f"table.{s}" for s in ("txt", "md", "tex", "csv")),
    }
    assert names == drawn | tables
    assert all((saved / name).read_bytes()[:4] == b"\x89PNG" for name in drawn if "png" in name)
    assert (saved / "table.txt").read_text() == comparison.table()
    rows = list(csv.DictReader(io.StringIO((saved / "table.csv").read_text())))
    assert [float(row["accuracy"]) for row in rows] == [r["accuracy"] for r in comparison.rows()]


def test_json_loads_back_to_an_equal_object(comparison, saved, tmp_path):
    assert load(saved / "comparison.json") == comparison
    assert load(saved) == comparison
    one = tmp_path / "one.json"
    comparison.save(one)
    read = load(one)
    assert read == comparison
    assert read.table() == comparison.table()
    assert read.rows() == comparison.rows()
    fewer = dvs.Comparison({"analog": comparison.runs["analog"]})
    assert read != fewer
    assert read != "text"


def test_a_profile_of_ones_own_is_saved_with_its_figures(tmp_path):
    chip = dvs.HardwareProfile(
        name="bench", source="our bench", basis="measured", ac=1e-12, mac=2e-12
    )
    got = dvs.compare({"m": wrapped(spiking())}, loader(), P, profiles=[chip])
    got.save(tmp_path / "a.json")
    read = load(tmp_path / "a.json")
    assert read == got
    assert read.profiles[0] == chip
    assert "bench (measured): our bench." in read.table()


def test_everything_is_rebuilt_from_the_json_alone(saved, tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "comparison.json").write_bytes((saved / "comparison.json").read_bytes())
    (folder / "notes.txt").write_text("mine")
    (folder / "report.html").write_text("broken")
    assert rebuild(folder) == folder
    made = {path.name for path in folder.iterdir()} - {"notes.txt"}
    assert made == {path.name for path in saved.iterdir()}
    assert (folder / "notes.txt").read_text() == "mine"
    for name in made:
        assert (folder / name).read_bytes() == (saved / name).read_bytes(), name


def test_rebuilding_elsewhere_takes_no_folder_that_is_in_use(saved, tmp_path):
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        rebuild(saved, tmp_path / "else")
    with pytest.raises(ComparisonError, match="holds no saved comparison"):
        rebuild(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text[: len(text) // 2], "cut off"),
        (lambda text: "", "cut off"),
        (lambda text: "[1, 2]", "no schema"),
        (lambda text: '{"a": 1}', "no schema"),
        (lambda text: text.replace('"schema": 4', '"schema": 99', 1), "schema 99"),
        (lambda text: text.replace('"n_parameters": 103', '"n_parameters": 3'), "was changed"),
    ],
)
def test_json_that_is_not_what_was_written_is_refused(saved, tmp_path, change, reason):
    text = (saved / "comparison.json").read_text()
    changed = change(text)
    assert changed != text
    (tmp_path / "a.json").write_text(changed)
    with pytest.raises(ComparisonError, match=reason) as error:
        load(tmp_path / "a.json")
    assert "a.json" in str(error.value)
    with pytest.raises(ComparisonError, match="cannot be read"):
        load(tmp_path / "missing.json")


def test_json_with_a_right_checksum_and_wrong_content_is_refused(saved):
    from dynvision_snn.comparison.comparison import _checksum

    values = json.loads((saved / "comparison.json").read_text())
    for damage in (
        lambda v: v["models"][0].pop("name"),
        lambda v: v["models"][0]["runs"][0].pop("budget"),
        lambda v: v["profiles"][0].update(ac="much"),
        lambda v: v.update(models=3),
    ):
        damaged = json.loads(json.dumps(values))
        damage(damaged)
        content = {k: damaged[k] for k in damaged if k not in ("format", "schema", "checksum")}
        damaged["checksum"] = _checksum(content)
        with pytest.raises(ComparisonError, match="cannot be read"):
            dvs.Comparison.from_dict(damaged)


def test_a_place_that_is_taken_or_cannot_be_written_stays_as_it_is(comparison, tmp_path):
    (tmp_path / "a.json").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        comparison.save(tmp_path / "a.json")
    with pytest.raises(OutputError):
        comparison.save(tmp_path / "file", force=True)
    with pytest.raises(OutputError):
        comparison.save(tmp_path / "file" / "below")
    assert (tmp_path / "a.json").read_text() == (tmp_path / "file").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "file"}


# -- joining ---------------------------------------------------------------------------------------


def test_saved_results_stand_side_by_side_and_differences_are_said(comparison, tmp_path):
    slower = dvs.Presentation("0011110", dt=DT, reaction_time=2.0)
    other = dvs.compare({"analog": wrapped(analog(1))}, loader(seed=9, n=8), slower)
    run = other.runs["analog"][0]
    older = replace(run, environment={**run.environment, "torch": "1.0"})
    joined = join({"a": comparison, "b": dvs.Comparison({"analog": older})})
    assert list(joined.runs) == ["spiking", "analog (a)", "analog (b)"]
    assert [profile.name for profile in joined.profiles] == ["45nm-fp32"]
    said = "\n".join(joined.differences)
    for fact in (
        "Different data: 20 samples",
        "8 samples of 6 float32 values",
        "Different presentation's reaction_time: 1.0 (spiking, analog (a)); 2.0 (analog (b))",
        "Different presentation's idle_time: 3.0",
        "1.0 (analog (b))",
    ):
        assert fact in said
    table = " ".join(joined.table().split())
    title = table.index("3 models")
    assert all(" ".join(line.split()) in table[:title] for line in joined.differences)
    assert comparison.differences == []
    assert all(row["differences"] == " ".join(joined.differences) for row in joined.rows())
    write_derived(joined, tmp_path)
    first = joined.differences[0]
    assert (tmp_path / "table.txt").read_text().startswith(first)
    assert (tmp_path / "table.md").read_text().startswith(markdown_text(first))
    assert (tmp_path / "table.tex").read_text().startswith(latex_text(first))
    page = (tmp_path / "report.html").read_text()
    assert page.index("Different data: 20 samples") < page.index("<table")
    assert {"accuracy", "accuracy-2", "time-2"} <= set(joined.plot())


def test_runs_of_one_name_are_pooled_when_asked(comparison):
    again = dvs.compare({"analog": wrapped(analog(1))}, loader(), P, rules=RULES)
    joined = join({"a": comparison, "b": again}, pool=True)
    assert list(joined.runs) == ["spiking", "analog"]
    row = next(row for row in joined.rows() if row["model"] == "analog")
    each = [comparison.runs["analog"][0].accuracy, again.runs["analog"][0].accuracy]
    assert row["accuracy"] == pytest.approx(statistics.fmean(each))
    other = dvs.compare({"analog": wrapped(analog(1))}, loader(seed=8), P, rules=RULES)
    with pytest.raises(ComparisonError, match="differ in data"):
        join({"a": comparison, "b": other}, pool=True)


def test_one_run_is_not_pooled_as_two(comparison):
    with pytest.raises(ComparisonError, match="runs 1 and 4 of 'spiking' are the same one"):
        join({"a": comparison, "b": comparison}, pool=True)
    again = dvs.compare({"analog": wrapped(analog(1))}, loader(), P, rules=RULES)
    both = join({"a": comparison, "b": again}, pool=True)
    with pytest.raises(ComparisonError, match="runs 2 and 3 of 'analog' are the same one"):
        join({"both": both, "b": again}, pool=True)


def test_what_was_joined_before_is_not_taken_for_further_runs(comparison):
    once = join({"a": comparison, "b": comparison})
    assert "analog (b)" in once.runs
    with pytest.raises(ComparisonError, match=r"two models would be called '\w+ \(a\)'"):
        join({"once": once, "a": comparison, "b": comparison})


def test_profiles_that_differ_between_files_are_said_or_refused(comparison):
    run = {"m": comparison.runs["analog"]}
    ours, theirs = (
        dvs.HardwareProfile(name="chip", source=source, basis="measured", ac=1e-12, mac=mac)
        for source, mac in (("one", 1e-12), ("two", 3e-12))
    )
    joined = join({"a": dvs.Comparison(run, [ours]), "b": dvs.Comparison(run, [theirs])})
    assert joined.profiles == (ours,)
    assert joined.remarks == (
        "Different figures for the profile chip: those of a are used, not those of b.",
    )
    with pytest.raises(ComparisonError, match="share no hardware profile"):
        join({"a": dvs.Comparison(run, [ours]), "b": dvs.Comparison(run, ["loihi"])})
    with pytest.raises(ComparisonError, match="nothing to join"):
        join({})


def test_files_are_told_apart_by_the_shortest_ends_of_their_paths(comparison, tmp_path):
    paths = [tmp_path / "x" / "r.json", tmp_path / "y" / "r.json"]
    for path in paths:
        dvs.Comparison({"analog": comparison.runs["analog"]}).save(path)
    assert list(load_all(paths)) == ["x/r", "y/r"]
    assert list(load_all(paths[:1])) == ["r"]
    with pytest.raises(ComparisonError, match="named twice"):
        load_all([paths[0], paths[0]])
    with pytest.raises(ComparisonError, match="nothing to read"):
        load_all([])


# -- figures and names -----------------------------------------------------------------------------


def test_a_model_has_one_colour_in_every_figure(comparison):
    styles = model_styles(comparison.runs)
    figures = comparison.plot()
    for name in ("accuracy", "anytime"):
        lines = {line.get_label(): line.get_color() for line in figures[name].axes[0].lines}
        for model, style in styles.items():
            assert lines[model] == style.colour
    answer = next(
        line for line in figures["membrane-analog"].axes[0].lines if "answer" in line.get_label()
    )
    assert answer.get_color() == styles["analog"].colour


def test_every_axis_says_its_unit(comparison):
    for name, figure in comparison.plot().items():
        for axes in figure.axes:
            assert axes.get_ylabel(), name
            if axes is figure.axes[-1]:
                assert axes.get_xlabel(), name
        shown = " ".join(axes.get_xlabel() + axes.get_ylabel() for axes in figure.axes)
        assert re.search(r"\((ms|%|[fpnµm]?J|[fpnµm]?J per sample|model's units)\)", shown), name


def test_the_anytime_curve_ends_at_what_was_spent_until_the_last_supervised_timestep(comparison):
    run = comparison.runs["analog"][0]
    spent = run.budget.joules("45nm-fp32", by="timestep")
    (onset,) = P.onsets
    last = int(P.supervised_mask.nonzero()[-1])
    line = next(
        line for line in comparison.plot()["anytime"].axes[0].lines if line.get_label() == "analog"
    )
    unit = comparison.plot()["anytime"].axes[0].get_xlabel()
    factor = {"p": 1e-12, "n": 1e-9, "µ": 1e-6}[re.search(r"\((.)J", unit)[1]]
    assert line.get_xdata()[-1] * factor == pytest.approx(float(spent[onset : last + 1].sum()))
    assert line.get_ydata()[-1] == pytest.approx(100 * float(run.accuracy_by_timestep[last]))
    assert len(line.get_xdata()) == last + 1 - onset


def test_the_anytime_curve_counts_every_answer_once():
    """Of two stimuli, the second has a label in one sample of four."""
    twice = dvs.Presentation("01110222", dt=DT)
    images = torch.rand(2, 4, FEATURES, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, 2, 3], [0, -1, -1, -1]])
    got = dvs.compare({"analog": wrapped(analog())}, [(images, labels)], twice, progress=False)
    run = got.runs["analog"][0]
    (line,) = (x for x in got.plot()["anytime"].axes[0].lines if x.get_label() == "analog")
    first, second = (slice(onset, onset + 3) for onset in twice.onsets)
    right = run.correct_by_timestep[first] + run.correct_by_timestep[second]
    assert line.get_ydata().tolist() == pytest.approx((100 * right / 5).tolist())


def test_energies_without_any_label_are_compared(tmp_path):
    images, _ = loader()[0]
    unlabelled = [(images, torch.full((len(images),), -1))]
    got = dvs.compare({"analog": wrapped(analog())}, unlabelled, P, progress=False)
    assert got.rows()[0]["accuracy"] is None
    got.save(tmp_path / "out")
    assert (tmp_path / "out" / "energy.svg").is_file()


HOSTILE = ["../../a/b", "$x_1^2$ & <b>|", "_hidden", "CON"]


def test_hostile_names_reach_every_file_as_they_are(tmp_path):
    run = dvs.simulate(wrapped(analog()), loader(), P)
    got = dvs.Comparison(dict.fromkeys(HOSTILE, run), name="a/b c")
    got.save(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert all(re.fullmatch(r"a-b-c-[A-Za-z0-9._-]+", name) for name in names)
    assert len([name for name in names if name.startswith("a-b-c-membrane")]) == 2 * len(HOSTILE)
    assert load(tmp_path / "out") == got
    page = (tmp_path / "out" / "a-b-c-report.html").read_text()
    assert "<b>" not in page
    assert "$x_1^2$ &amp; &lt;b&gt;|" in page
    legend = [text.get_text().strip() for text in got.plot()["accuracy"].legends[0].get_texts()]
    assert legend[: len(HOSTILE)] == HOSTILE
    assert not any(text.get_parse_math() for text in got.plot()["accuracy"].legends[0].get_texts())


def test_the_page_asks_for_nothing_from_elsewhere(saved):
    page = (saved / "report.html").read_text()
    addresses = set(re.findall(r"""(?:src|href)=["']([^"']+)""", page))
    assert all(address.startswith("#") for address in addresses)
    assert not re.search(r"url\((?!#)|@import|<script|<link|<iframe|<img", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r"(?:url\(|href=\")#([^\")]+)", page)) <= set(ids)
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page


def test_values_that_one_run_lacks_are_given_to_none():
    from dynvision_snn.comparison.measures import over_runs, ratio

    assert over_runs([{"a": 1.0}, {"a": None}]) == {"a": None}
    assert ratio(None, 1.0) is None
    assert ratio(MeanSD(3.0, 1.0), MeanSD(2.0, 1.0)) == 1.5


# -- the command -----------------------------------------------------------------------------------


def command(*arguments):
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from dynvision_snn.cli import app

    return CliRunner().invoke(app, list(map(str, arguments)))


def test_the_command_sets_saved_results_side_by_side_and_makes_them_again(comparison, tmp_path):
    analog_alone = {"analog": comparison.runs["analog"]}
    dvs.Comparison(analog_alone).save(tmp_path / "a.json")
    dvs.Comparison(analog_alone, ["loihi", "45nm-fp32"]).save(tmp_path / "b-comparison.json")
    shown = command(
        "compare", tmp_path / "a.json", tmp_path / "b-comparison.json", "--profile", "cpu"
    )
    assert shown.exit_code == 0
    assert "(a)" in shown.stdout
    assert "cpu (estimate): Degnan" in " ".join(shown.stdout.split())
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "b-comparison.json"}
    out = tmp_path / "out"
    shown = command("compare", tmp_path / "a.json", "--out", out, "--baseline", "analog")
    assert shown.exit_code == 0
    assert "open report.html" in shown.stdout
    again = command("compare", tmp_path / "a.json", "--out", out)
    assert isinstance(again.exception, OutputError)
    (out / "report.html").unlink()
    assert command("report", out).exit_code == 0
    assert (out / "report.html").exists()
    assert isinstance(command("report", tmp_path / "nowhere").exception, ComparisonError)
