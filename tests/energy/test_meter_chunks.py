"""Runs that go on from each other are later timesteps of the same samples."""

from __future__ import annotations

import pytest
import torch

import dynvision_snn as dvs
from dynvision_snn.errors import EnergyError
from tests.models import DT, FEATURES, STYLES

GOING_ON = [name for name, style in STYLES.items() if style.goes_on]
QUANTITIES = ("spikes", "synops_ac", "synops_mac", "neuron_updates", "synops_dense")


def setting(name):
    model = dvs.wrap(STYLES[name].fresh(), dt=DT).eval()
    images = torch.rand(4, FEATURES, generator=torch.Generator().manual_seed(1)) * 3
    return model, images, dvs.Presentation("0011111011", DT, reaction_time=1.0, idle_time=3.0)


def check_same(one, other):
    mine, theirs = one.to_dict(), other.to_dict()
    for budget in (mine, theirs):
        for layer in budget["layers"]:
            layer["series"] = {k: torch.tensor(v) for k, v in layer["series"].items()}
    assert mine["samples"] == theirs["samples"]
    assert mine["phases"] == theirs["phases"]
    for a, b in zip(mine["layers"], theirs["layers"], strict=True):
        assert a["series"].keys() == b["series"].keys()
        for name, counts in a["series"].items():
            assert torch.allclose(counts, b["series"][name], rtol=1e-6), (a["name"], name)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("every", [1.0, 3.0, 5.0, 100.0])
@pytest.mark.parametrize("name", GOING_ON)
def test_chunks_cost_what_the_run_costs(name, every, per_sample):
    model, images, presentation = setting(name)
    with dvs.EnergyMeter(model, per_sample=per_sample) as whole, torch.no_grad():
        for part in (images[:3], images[3:]):
            model(part, presentation)
    with dvs.EnergyMeter(model, per_sample=per_sample) as pieces, torch.no_grad():
        for part in (images[:3], images[3:]):
            for _ in model.chunks(part, presentation, every=every):
                pass
    assert pieces.budget().n_samples == 4
    assert pieces.budget().n_timesteps == presentation.n_timesteps
    check_same(pieces.budget(), whole.budget())
    check_same(pieces.budget().idle, whole.budget().idle)
    if per_sample:
        mine, theirs = pieces.sample_energy, whole.sample_energy
        assert mine.n_samples == 4
        assert torch.equal(mine.timesteps["whole"], theirs.timesteps["whole"])
        for quantity in QUANTITIES:
            assert torch.allclose(mine.operations(quantity), theirs.operations(quantity))


def test_runs_that_go_on_from_a_state_are_the_same_samples():
    model, images, presentation = setting("sequential_init_hidden")
    inputs = presentation.present(images)
    with dvs.EnergyMeter(model) as whole, torch.no_grad():
        model(inputs)
    with dvs.EnergyMeter(model) as pieces, torch.no_grad():
        run = model(inputs[:4])
        model(inputs[4:], state=run.state)
    check_same(pieces.budget(), whole.budget())


def test_a_run_that_goes_on_from_before_the_measurement_has_its_samples():
    model, images, presentation = setting("sequential_init_hidden")
    inputs = presentation.present(images)
    before = model(inputs[:4])
    with dvs.EnergyMeter(model, per_sample=True) as meter, torch.no_grad():
        model(inputs[4:], state=before.state)
    budget = meter.budget()
    assert (budget.n_samples, budget.n_timesteps) == (4, 10)
    assert budget.samples.sum(0).tolist() == [0] * 4 + [4] * 6
    assert meter.sample_energy.timesteps["whole"].tolist() == [[6.0] * 4]


def test_a_moment_is_marked_after_the_last_chunk():
    model, images, presentation = setting("sequential_init_hidden")
    times = torch.tensor([[0.0, 3.0, 5.0, torch.nan]])

    def marked(runs):
        with dvs.EnergyMeter(model, per_sample=True) as meter, torch.no_grad():
            for _ in runs():
                pass
            meter.mark("here", times, [2])
        return meter.sample_energy.operations("spikes", "here")

    pieces = marked(lambda: model.chunks(images, presentation, every=4.0))
    whole = marked(lambda: [model(images, presentation)])
    assert torch.equal(pieces.nan_to_num(-1), whole.nan_to_num(-1))


def test_pieces_whose_samples_could_not_be_told_apart_are_refused():
    model, images, presentation = setting("sequential_init_hidden")
    inputs = presentation.present(images)
    with dvs.EnergyMeter(model, per_sample=True) as meter, torch.no_grad():
        first = model(inputs[:4])
        model(inputs[:4])
        with pytest.raises(EnergyError, match="one after the other"):
            model(inputs[4:], state=first.state)
        # What was refused is not counted.
        assert meter.budget().n_samples == 8
        second = model(inputs[:4])
        meter.mark("here", torch.zeros(1, 4))
        with pytest.raises(EnergyError, match="marks after the last piece"):
            model(inputs[4:], state=second.state)


def test_mixed_runs_need_no_order_where_samples_are_not_told_apart():
    model, images, presentation = setting("sequential_init_hidden")
    inputs = presentation.present(images)
    with dvs.EnergyMeter(model) as meter, torch.no_grad():
        first, second = model(inputs[:4]), model(inputs[:4])
        for run in (first, second):
            model(inputs[4:], state=run.state)
    assert (meter.budget().n_samples, meter.budget().n_timesteps) == (8, 10)
