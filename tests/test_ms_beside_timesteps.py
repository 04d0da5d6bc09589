"""No number of timesteps is shown to a user without its ms beside it, where a timestep is known."""

from __future__ import annotations

import re
import warnings

import pytest
import snntorch as snn
import torch
from torch import nn

import dynvision_snn as dvs
from dynvision_snn.decision import MembraneMargin, decide
from dynvision_snn.losses import EnergyLoss
from dynvision_snn.report.over_time import energy_and_accuracy_over_time
from dynvision_snn.report.plots import accuracy_over_time
from dynvision_snn.sources import collate
from tests.test_simulation import DT, FEATURES, ONE, dataset, simulated, spiking

MS = r"-?[\d.]+ ms"
COUNT = re.compile(rf"\b[\d,]+ timesteps?\b(?! (?:\({MS}\)|of {MS}))")
PLACE = re.compile(rf"\btimestep -?\d+\b(?! \({MS}\)|\.\d+%)")


def check_ms_beside(text: str) -> None:
    bare = [found.group() for pattern in (COUNT, PLACE) for found in pattern.finditer(text)]
    assert not bare, f"{bare} in: {text}"


@pytest.mark.parametrize(
    "text",
    ["a run of 5 timesteps.", "at timestep 3 of", "1 timestep of 2 samples", "of 7 timesteps (x)"],
)
def test_the_check_can_fail(text):
    with pytest.raises(AssertionError):
        check_ms_beside(text)
    check_ms_beside("5 timesteps (10 ms), timestep 3 (-0.5 ms), 4 timesteps of 2 ms, any timestep")


class Twice(nn.Module):
    """Calls its neuron twice in a timestep, once it is told to."""

    twice = False

    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(FEATURES, 3), snn.Leaky(beta=0.8, init_hidden=True)

    def forward(self, x):
        spikes = self.lif(self.fc(x))
        return self.lif(spikes) if self.twice else spikes


class Cut(nn.Module):
    """Leaves out timesteps of a long run."""

    def __init__(self):
        super().__init__()
        self.fc, self.rnn = nn.Linear(FEATURES, 3), nn.RNN(3, 3)

    def forward(self, x):
        return self.rnn(self.fc(x))[0][:5]


def model(net=None, **kwargs):
    return dvs.wrap(net or spiking(), DT, **kwargs)


def not_finite(**kwargs):
    images, labels = dataset(4)
    images[2] = torch.nan
    net = nn.Sequential(nn.Linear(FEATURES, 5), nn.ReLU(), nn.Linear(5, 4))
    dvs.simulate(model(net, **kwargs), [(images, labels)], ONE)


def called_twice():
    timed = model(Twice(), readout="lif")
    timed(torch.rand(2, FEATURES), ONE)
    timed.net.twice = True
    timed(torch.rand(2, FEATURES), ONE)


def leaves_out_timesteps():
    timed = model(Cut(), stepping="sequence", time_axis=0, readout="")
    timed(torch.rand(3, 2, FEATURES))
    timed(torch.rand(2, FEATURES), ONE)


def energy_of_a_piece():
    timed = model()
    with EnergyLoss() as energy:
        energy.register_hooks(timed)
        timed(torch.rand(2, FEATURES), ONE)
        energy(None, None, whole=torch.zeros(3, 2, dtype=torch.int64))


def marked_outside():
    timed = model()
    with dvs.EnergyMeter(timed, per_sample=True) as meter:
        timed(torch.rand(2, FEATURES), ONE)
        meter.mark("late", torch.full((1, 2), 99.0))


def shorter_answers():
    values = simulated().to_dict()
    values["correct"] = [row[:-1] for row in values["correct"]]
    dvs.Simulation.from_dict(values)


P = dvs.Presentation
ERRORS = {
    "fewer timesteps than entries": lambda: P("0011", DT, n_timesteps=2),
    "phases of another length": lambda: P("1", DT, n_timesteps=2, phases=[("a", 5, 1)]),
    "a batch shorter than a sample": lambda: dvs.PresentationBatch([P("0011", DT)], 2),
    "inputs of another length": lambda: model()(torch.rand(3, 2, FEATURES), ONE, time_axis=0),
    "labels of another length": lambda: dvs.simulate(
        model(),
        [(torch.rand(7, 2, FEATURES), torch.zeros(3, 2, dtype=torch.int64))],
        ONE,
        time_axis=0,
    ),
    "a sample of another length": lambda: collate([(torch.rand(3, 5), 1, ONE)], timed=True),
    "a model that is not finite": not_finite,
    "the same, looked for": lambda: not_finite(check_finite=True),
    "a layer called twice": called_twice,
    "a model that leaves timesteps out": leaves_out_timesteps,
    "onsets outside of the run": lambda: decide(
        MembraneMargin(1.0), torch.zeros(3, 1, 2), None, [5], DT
    ),
    "a moment outside of the run": marked_outside,
    "targets shorter than a piece": energy_of_a_piece,
    "a simulation that was cut": shorter_answers,
    "curves of two lengths": lambda: accuracy_over_time({"a": [0.5], "b": []}, dt=DT),
    "energies of other models": lambda: energy_and_accuracy_over_time({}, {"a": [0.5]}, dt=DT),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    if "curves" in name or "energies" in name:
        pytest.importorskip("matplotlib")
    with pytest.raises(dvs.errors.DynvisionError) as caught:
        ERRORS[name]()
    said = str(caught.value)
    check_ms_beside(said)
    assert " ms" in said


@pytest.mark.parametrize(
    "build",
    [
        lambda: P("0110", DT, reaction_time=5.0),
        lambda: P("000", DT),
        lambda: dvs.retime(model(), dt=2 * DT, example=torch.rand(1, FEATURES)),
        lambda: dvs.wrap(nn.Sequential(nn.Linear(3, 2), snn.Leaky(0.01, init_hidden=True)), DT),
    ],
)
def test_warnings(build):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build()
    for warning in caught:
        check_ms_beside(str(warning.message))


def test_what_is_shown_of_runs_and_their_results(tmp_path):
    pytest.importorskip("matplotlib")
    timed = model()
    run = timed(torch.rand(2, FEATURES), ONE)
    got = simulated(rules={"margin": MembraneMargin(0.05)})
    budget = got.budget
    alone = simulated(by_timestep=False).budget
    own = dvs.PresentationBatch([ONE, P("011", DT)])
    for shown in (run, run._repr_html_(), got, budget, str(budget), budget._repr_html_(), alone):
        check_ms_beside(shown if isinstance(shown, str) else repr(shown))
    for text in (ONE.describe(), own.describe(), repr(own), timed.explain(), budget.explain("cpu")):
        check_ms_beside(str(text))
    check_ms_beside(str(dvs.describe(timed, torch.rand(1, FEATURES))))
    comparison = dvs.Comparison({"a": got, "b": got}, baseline="a")
    comparison.save(tmp_path / "saved")
    texts = [
        path.read_text()
        for path in (tmp_path / "saved").iterdir()
        if path.suffix in (".txt", ".md", ".tex", ".html", ".svg")
    ]
    assert len(texts) > 5
    for text in texts:
        check_ms_beside(re.sub(r"\s+", " ", text))
    axes = [axis for figure in comparison.plot().values() for axis in figure.axes]
    labels = [axis.get_xlabel() + " " + axis.get_ylabel() for axis in axes]
    assert not any("step" in label for label in labels)
    assert any("energy per 1 ms" in label for label in labels)
