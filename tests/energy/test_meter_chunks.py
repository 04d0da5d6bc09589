"""Runs that go on from each other are later timesteps of the same samples."""

from __future__ import annotations

import gc

import pytest
import torch

import dynvision_snn as dvs
from dynvision_snn.errors import EnergyError
from tests.models import DT, FEATURES, STYLES

GOING_ON = [name for name, style in STYLES.items() if style.goes_on]
ONE = dvs.Presentation("011", DT, reaction_time=1.0, idle_time=3.0)
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


@pytest.mark.parametrize("every", [1.0, 3.0, 4.0, 100.0])
def test_moments_are_marked_after_each_chunk_as_they_come(every):
    model, images, presentation = setting("sequential_init_hidden")
    onsets = torch.tensor([[2, 2, 2, 2], [8, 8, -1, 8]])
    times = torch.tensor([[0.0, 3.0, 5.0, torch.nan], [0.0, torch.nan, torch.nan, 1.0]])
    steps = onsets + times.nan_to_num(0).long()

    def marked(runs):
        with dvs.EnergyMeter(model, per_sample=True) as meter, torch.no_grad():
            for run in runs():
                known = steps < run.start + run.n_timesteps
                meter.mark("here", times.masked_fill(~known, torch.nan), onsets)
        return meter.sample_energy

    pieces = marked(lambda: model.chunks(images, presentation, every=every))
    whole = marked(lambda: [model(images, presentation)])
    assert pieces.counts["here"].keys() == whole.counts["here"].keys()
    for quantity in QUANTITIES:
        one, other = (x.operations(quantity, "here") for x in (pieces, whole))
        assert torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))
        assert (one[~times.isnan()] > 0).any() == (other[~times.isnan()] > 0).any()
    assert torch.equal(pieces.timesteps["here"].isnan(), times.isnan())
    assert pieces.timesteps["here"].nan_to_num(0).tolist() == [[1, 4, 6, 0], [1, 0, 0, 2]]


def test_a_moment_may_move_into_a_later_chunk_or_go():
    model, images, presentation = setting("sequential_init_hidden")
    nan = torch.nan
    with dvs.EnergyMeter(model, per_sample=True) as moved, torch.no_grad():
        for chunk in model.chunks(images, presentation, every=5.0):
            last = [[6.0, 1.0, nan, nan]] if chunk.start else [[2.0, 1.0, 0.0, nan]]
            moved.mark("here", torch.tensor(last), [1])
    with dvs.EnergyMeter(model, per_sample=True) as whole, torch.no_grad():
        model(images, presentation)
        whole.mark("here", torch.tensor([[6.0, 1.0, nan, nan]]), [1])
    for quantity in QUANTITIES:
        one, other = (x.sample_energy.operations(quantity, "here") for x in (moved, whole))
        assert torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))


@pytest.mark.parametrize("late", ["moment", "onset"])
def test_a_moment_whose_counts_are_gone_is_refused(late):
    model, images, presentation = setting("sequential_init_hidden")
    with dvs.EnergyMeter(model, per_sample=True) as meter, torch.no_grad():
        for chunk in model.chunks(images, presentation, every=5.0):
            if not chunk.start and late == "moment":
                meter.mark("here", torch.full((1, 4), torch.nan), [1])
        time = 2.0 if late == "moment" else 7.0
        with pytest.raises(EnergyError, match="too late"):
            meter.mark("here", torch.full((1, 4), time), [1])


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


def test_mixed_runs_need_no_order_where_samples_are_not_told_apart():
    model, images, presentation = setting("sequential_init_hidden")
    inputs = presentation.present(images)
    with dvs.EnergyMeter(model) as meter, torch.no_grad():
        first, second = model(inputs[:4]), model(inputs[:4])
        for run in (first, second):
            model(inputs[4:], state=run.state)
    assert (meter.budget().n_samples, meter.budget().n_timesteps) == (8, 10)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("name", ["sequential_init_hidden", "norse_list"])
def test_sums_alone_are_the_sums_of_what_is_kept_by_timestep(name, per_sample):
    model, images, presentation = setting(name)
    own = dvs.PresentationBatch([presentation, presentation.at_dt(DT), ONE, ONE])

    def measured(by_timestep):
        with (
            dvs.EnergyMeter(model, per_sample=per_sample, by_timestep=by_timestep) as meter,
            torch.no_grad(),
        ):
            for _ in model.chunks(images, presentation, every=4.0):
                pass
            model(images, own)
            model(images[:2], ONE)
        return meter.budget()

    alone, kept = measured(by_timestep=False), measured(by_timestep=True)
    for mine, theirs in ((alone, kept), (alone.idle, kept.idle), (alone + alone, kept + kept)):
        assert (mine.n_samples, mine.n_timesteps) == (theirs.n_samples, theirs.n_timesteps)
        assert mine.phases == theirs.phases
        assert mine.samples.shape == (len(mine.phases), 1)
        assert mine.layers == theirs.layers
        assert mine.by_phase("synops_ac") == pytest.approx(theirs.by_phase("synops_ac"))
        assert float(mine.joules("45nm-fp32")) == pytest.approx(float(theirs.joules("45nm-fp32")))
    assert dvs.EnergyBudget.from_dict(alone.to_dict()).to_dict() == alone.to_dict()
    for refused in (
        lambda: alone.by_timestep("spikes"),
        lambda: alone.joules("45nm-fp32", by="timestep"),
        lambda: alone + kept,
    ):
        with pytest.raises(EnergyError, match="by_timestep"):
            refused()


@pytest.mark.parametrize("by_timestep", [False, True])
@pytest.mark.parametrize("per_sample", [False, True])
def test_what_a_meter_holds_of_a_run_in_chunks(by_timestep, per_sample):
    """Bytes of every tensor in reach of the ledger, by the length of the run."""
    model, images, _ = setting("sequential_init_hidden")

    def held(n_timesteps):
        presentation = dvs.Presentation("01", DT, n_timesteps=n_timesteps)
        with (
            dvs.EnergyMeter(model, per_sample=per_sample, by_timestep=by_timestep) as meter,
            torch.no_grad(),
        ):
            for _ in model.chunks(images, presentation, every=20.0):
                pass
        return bytes_in(meter._ledger), meter.budget()

    (short, budget), (long, _) = held(100), held(400)
    if not by_timestep:
        assert long <= short
        return
    series = sum(len(layer.series) for layer in budget.counts)
    # Of each series at most a number for each of two phases, and half as much again held ready.
    assert long - short <= 300 * 8 * 2 * 1.5 * (series + 1)


def bytes_in(root):
    """Of all tensors that an object refers to."""
    seen, sizes, stack = set(), {}, [root]
    while stack:
        found = stack.pop()
        if id(found) in seen or isinstance(found, type | torch.nn.Module):
            continue
        seen.add(id(found))
        if isinstance(found, torch.Tensor):
            storage = found.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        else:
            stack.extend(gc.get_referents(found))
    return sum(sizes.values())


def test_the_count_of_bytes_sees_what_is_deep_inside():
    assert bytes_in({"a": [(torch.zeros(10, dtype=torch.float64)[:2],)]}) == 80
