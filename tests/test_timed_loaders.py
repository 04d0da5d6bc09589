"""Loaders with time of their own, labels per timestep, and long runs, in simulate and training."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader

import dynvision_snn as dvs
from dynvision_snn.decision import MembraneMargin
from dynvision_snn.errors import DataError, PresentationError, WrapError
from dynvision_snn.loading import arrange
from dynvision_snn.losses import build_criterion
from dynvision_snn.sources import Place, collate, load
from dynvision_snn.training.loop import fit
from dynvision_snn.varying import VaryingPresentation, draw_generator
from tests.models import CLASSES, DT, FEATURES, STYLES

P = dvs.Presentation("0011111001110", DT, reaction_time=1.0, idle_time=2.0)
SHORT = dvs.Presentation("0111", DT, idle_time=2.0)
N = 7


pytestmark = pytest.mark.filterwarnings("ignore::dynvision_snn.errors.PresentationWarning")


def wrapped(name="sequential_init_hidden"):
    return dvs.wrap(STYLES[name].fresh(), dt=DT, engine="step")


def data(n=N):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(n, FEATURES, generator=generator) * 3
    return images, torch.randint(0, CLASSES, (n,), generator=generator)


def batches(images, labels, sizes=(3, 4), axis=0, label_axis=0):
    return list(zip(images.split(sizes, axis), labels.split(sizes, label_axis), strict=True))


def check_same(one, other, but=("data", "trace", "environment", "presentation")):
    mine, theirs = one.to_dict(), other.to_dict()
    for key in mine.keys() - {"budget", "moments", *but}:
        assert mine[key] == theirs[key], key
    # Sums of floating point numbers, in another order.
    for a, b in zip(one.budget.counts, other.budget.counts, strict=True):
        for name, counts in a.series.items():
            assert torch.allclose(b.series[name], counts, rtol=1e-6), (a.name, name)
    for name, moment in one.moments.items():
        assert torch.equal(moment.right, other.moments[name].right)
        for quantity, spent in moment.operations.items():
            found = other.moments[name].operations[quantity]
            assert torch.allclose(found, spent, equal_nan=True), quantity


# -- inputs over time -----------------------------------------------------------------------------


@pytest.mark.parametrize("per_timestep", [False, True])
@pytest.mark.parametrize("time_axis", [0, 1])
@pytest.mark.parametrize(
    "name", ["sequential_init_hidden", "norse_list", "loop_inside_batch_first"]
)
def test_images_shown_beforehand_are_the_same_simulation(name, time_axis, per_timestep):
    model = wrapped(name)
    images, labels = data()
    shown = dvs.simulate(model, batches(images, labels), P)
    inputs = P.present(images)
    over_time = labels.expand(P.n_timesteps, -1) if per_timestep else labels
    if time_axis == 1:
        inputs = inputs.transpose(0, 1)
        over_time = over_time.T if per_timestep else over_time
    loader = batches(
        inputs,
        over_time,
        axis=1 - time_axis,
        label_axis=1 - time_axis if per_timestep else 0,
    )
    timed = dvs.simulate(model, loader, P, time_axis=time_axis)
    check_same(timed, shown)
    assert torch.equal(timed.trace.membrane, shown.trace.membrane)


def test_labels_per_timestep_are_scored_at_their_timestep():
    model = wrapped()
    images, _ = data()
    membrane = model.eval()(images, P).membrane
    at_each = membrane.argmax(-1)
    silent = membrane.amax(-1) == membrane.amin(-1)
    found = dvs.simulate(model, [(P.present(images), at_each)], P, time_axis=0)
    assert torch.equal(found.correct_by_timestep, (~silent).sum(1))
    wrong = dvs.simulate(model, [(P.present(images), (at_each + 1) % CLASSES)], P, time_axis=0)
    assert wrong.correct_by_timestep.sum() == 0
    unlabelled = at_each.masked_fill(torch.arange(N) > 2, -1)
    part = dvs.simulate(model, [(P.present(images), unlabelled)], P, time_axis=0)
    assert part.counted_by_timestep.tolist() == [3] * P.n_timesteps


@pytest.mark.parametrize("time_axis", [None, 0, 1])
def test_targets_are_the_answers_at_supervised_timesteps(time_axis):
    images, labels = data()
    pair = {
        None: (images, labels),
        0: (P.present(images), labels),
        1: (P.present(images).transpose(0, 1), labels[:, None].expand(-1, P.n_timesteps)),
    }[time_axis]
    assert torch.equal(arrange(pair, P, time_axis).targets, P.targets(labels))


def test_several_stimuli_have_an_answer_each():
    p = dvs.Presentation("0120", DT)
    labels = torch.tensor([[1, 2], [3, 0]])
    loaded = arrange((torch.rand(2, 2, FEATURES), labels), p)
    assert loaded.answers.tolist() == [[1, 2], [1, 2], [3, 0], [3, 0]]
    assert torch.equal(loaded.targets, p.targets(labels))
    ones = dvs.PresentationBatch([p, dvs.Presentation("21", DT)])
    loaded = arrange((torch.rand(2, 2, FEATURES), labels), ones)
    assert loaded.answers.tolist() == [[1, 0], [1, 2], [3, -1], [3, -1]]
    assert torch.equal(loaded.targets, ones.targets(labels))


@pytest.mark.parametrize(
    ("batch", "time_axis", "error", "match"),
    [
        ((torch.rand(4, 13, 5), torch.zeros(4).long()), 0, PresentationError, "time_axis=1"),
        ((torch.rand(13, 4, 5), torch.zeros(4).long()), 1, PresentationError, "4 timesteps"),
        ((torch.rand(13, 4, 5), torch.zeros(5).long()), 0, DataError, "labels of shape"),
        ((torch.rand(13, 4, 5), torch.zeros(4, 13).long()), 0, DataError, "labels of shape"),
        ((torch.rand(13, 4, 5), torch.zeros(13, 4)), 0, PresentationError, "int64"),
        ((torch.rand(13, 4, 5), torch.zeros(4).long()), 2, DataError, "time_axis=2"),
        ((torch.rand(13, 4, 5), torch.zeros(4).long()), None, DataError, "say time_axis="),
        ((torch.rand(4, 5), torch.zeros(4, 13).long()), None, PresentationError, "labels"),
        ((torch.rand(4), torch.zeros(4).long()), 0, DataError, "time and batch"),
        (torch.rand(4, 5), None, DataError, "Tensor"),
        ((torch.rand(4, 5), [1, 2]), None, DataError, "list"),
    ],
)
def test_what_does_not_fit_is_refused(batch, time_axis, error, match):
    with pytest.raises(error, match=match):
        dvs.simulate(wrapped(), [batch], P, time_axis=time_axis)


def test_a_model_refuses_an_axis_that_is_none():
    with pytest.raises(WrapError, match="time_axis=3"):
        wrapped()(torch.rand(13, 2, FEATURES), P, time_axis=3)


def test_time_axis_alone_turns_inputs_around():
    model, inputs = wrapped(), torch.rand(2, 6, FEATURES)
    assert torch.equal(model(inputs, time_axis=1).membrane, model(inputs.transpose(0, 1)).membrane)


# -- per-sample presentations ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sequential_init_hidden", "norse_list", "gru_sequence"])
@pytest.mark.parametrize("timed", [False, True])
def test_a_simulation_by_sample_is_its_samples_simulated_alone(name, timed):
    model = wrapped(name)
    images, labels = data()
    patterns = ("0111", "1101110", "01", "111", "00000110", "0111", "101101")
    ones = [dvs.Presentation(p, DT, reaction_time=1.0, idle_time=1.0) for p in patterns]
    presentation = dvs.PresentationBatch(ones)
    rules = {"margin": MembraneMargin(0.01)}
    if timed:
        loader = batches(presentation.present(images), labels, axis=1)
        options = {"time_axis": 0}
    else:
        loader, options = batches(images, labels), {}
    together = dvs.simulate(model, loader, presentation, rules=rules, **options)
    alone = [
        dvs.simulate(model, [(images[b : b + 1], labels[b : b + 1])], one, rules=rules)
        for b, one in enumerate(ones)
    ]
    for counts in ("correct", "counted"):
        whole = getattr(together, counts)
        summed = torch.zeros_like(whole)
        for one in alone:
            part = getattr(one, counts)
            summed[:, : part.shape[1]] += part
        assert torch.equal(whole, summed)
    assert together.correct_last == sum(one.correct_last for one in alone)
    assert together.counted_last == sum(one.counted_last for one in alone)
    supervised = sum(int(p.supervised_mask.sum()) for p in ones)
    right = sum(float(one.correct[2].sum()) for one in alone)
    assert together.accuracy == pytest.approx(right / supervised)
    for name in ("settling", "margin"):
        for b, one in enumerate(alone):
            n = len(ones[b].onsets)
            mine = together.moments[name]
            theirs = one.moments[name]
            assert (
                mine.times[:n, b].nan_to_num(-1).tolist()
                == theirs.times[:, 0].nan_to_num(-1).tolist()
            )
            assert mine.times[n:, b].isnan().all()
            assert torch.equal(mine.right[:n, b], theirs.right[:, 0])
            for quantity, spent in mine.operations.items():
                found = theirs.operations[quantity][:, 0]
                assert torch.allclose(spent[:n, b], found, equal_nan=True), quantity
    spikes = sum(one.budget.total.synops_ac for one in alone) / N
    assert together.budget.total.synops_ac == pytest.approx(spikes)
    again = dvs.Simulation.from_dict(json.loads(json.dumps(together.to_dict())))
    assert again == together


@pytest.mark.parametrize("n", [N - 1, N + 1])
def test_there_is_one_presentation_for_each_sample(n):
    images, labels = data()
    presentation = dvs.PresentationBatch([dvs.Presentation("01", DT)] * n)
    with pytest.raises(DataError, match=f"{N} samples, but there are presentations for {n}"):
        dvs.simulate(wrapped(), batches(images, labels), presentation)


def test_models_are_compared_by_sample_and_with_timed_inputs():
    images, labels = data()
    presentation = dvs.PresentationBatch([SHORT, P] * 3 + [P])
    models = {"spiking": wrapped(), "gru": wrapped("gru_step")}
    loader = batches(presentation.present(images), labels, axis=1)
    comparison = dvs.compare(models, loader, presentation, time_axis=0, rules={}, progress=False)
    assert "by sample" in comparison.table()


# -- presentations that are drawn, or come with the batch -----------------------------------------


def random_onsets(n_samples, generator):
    return dvs.PresentationBatch.random(
        n_samples, generator, DT, onset=(1.0, 6.0), shown=(3.0, 8.0), idle_time=2.0
    )


def random_patterns(n_samples, generator):
    """Of one to three onsets, or none."""
    drawn = torch.randint(0, 2, (n_samples, 8), generator=generator).tolist()
    return dvs.PresentationBatch(dvs.Presentation(entries, DT) for entries in drawn)


@pytest.mark.parametrize("draw", [random_onsets, random_patterns])
def test_a_simulation_draws_for_each_batch_what_it_then_tells(draw):
    """The same as with what was drawn, given beforehand."""
    model, rules = wrapped(), {"margin": MembraneMargin(0.01)}
    loader = batches(*data(), sizes=(3, 2, 2))
    drawn = dvs.simulate(model, loader, draw, seed=5, rules=rules)
    ones = [
        one
        for number, (_, labels) in enumerate(loader)
        for one in draw(len(labels), draw_generator(5, 0, number))
    ]
    given = dvs.simulate(model, loader, dvs.PresentationBatch(ones), rules=rules)
    assert list(drawn.presentation) == ones
    check_same(drawn, given, ("environment",))
    assert drawn.data == given.data
    assert drawn == dvs.simulate(model, loader, draw, seed=5, rules=rules)
    assert drawn.data != dvs.simulate(model, loader, draw, seed=6).data
    assert dvs.Simulation.from_dict(json.loads(json.dumps(drawn.to_dict()))) == drawn


@pytest.mark.parametrize("every", [None, 4.0])
@pytest.mark.parametrize("timed", [False, True])
def test_a_loader_may_yield_presentations_with_its_batches(timed, every):
    """Batches of different lengths, one of them by one presentation for all."""
    model, (images, labels) = wrapped(), data()
    presentations = (random_onsets(3, draw_generator(0)), P)
    parts = zip(images.split((3, 4)), labels.split((3, 4)), presentations, strict=True)
    loader = [(p.present(x) if timed else x, y, p) for x, y, p in parts]
    given = dvs.PresentationBatch([*presentations[0], *[P] * 4])
    found = dvs.simulate(model, loader, time_axis=0 if timed else None, every=every)
    check_same(found, dvs.simulate(model, batches(images, labels), given, every=every))
    assert found.presentation == given
    assert len(found.trace.membrane) == given.n_timesteps


def test_models_are_compared_by_the_same_draws():
    models = {"spiking": wrapped(), "gru": wrapped("gru_step")}
    loader = batches(*data())
    comparison = dvs.compare(models, loader, random_onsets, seed=3, rules={}, progress=False)
    one, other = (runs[0] for runs in comparison.runs.values())
    assert one.presentation == other.presentation
    assert comparison.differences == []


def test_samples_of_different_lengths_are_collated():
    """Timed inputs as the samples of a data set, each with a presentation of its own."""
    images, labels = data()
    ones = list(random_onsets(N, draw_generator(1)))
    shown = [one.present(image[None])[:, 0] for one, image in zip(ones, images, strict=True)]
    over_time = [label.expand(one.n_timesteps) for one, label in zip(ones, labels, strict=True)]
    timed = partial(collate, timed=True)
    model = wrapped()
    expected = dvs.simulate(model, batches(images, labels), dvs.PresentationBatch(ones))
    for inputs, answers, axis, how in (
        (images, labels, None, collate),
        (shown, labels, 1, timed),
        (shown, over_time, 1, timed),
    ):
        samples = list(zip(inputs, answers, ones, strict=True))
        loader = DataLoader(samples, 3, collate_fn=how)
        check_same(dvs.simulate(model, loader, time_axis=axis), expected)


def test_what_has_no_presentation_or_two_is_refused():
    (images, labels), model = data(), wrapped()
    refused = [
        ([(images, labels)], None, "there is no presentation"),
        ([(images, labels, P)], P, "there is one already"),
        ([(images, labels, "011")], None, "came with a str"),
        ([(images, labels, dvs.PresentationBatch([P]))], None, f"a batch of {N} samples"),
        ([(images, labels)], lambda n, g: dvs.PresentationBatch([P] * (n + 1)), "are for 8"),
        ([(images, labels)], lambda n, g: [P] * n, "came with a list"),
        ([(images, labels)], "0111", "came with a str"),
    ]
    for loader, source, match in refused:
        with pytest.raises(DataError, match=match.replace("are for", "presentations for")):
            dvs.simulate(model, loader, source)
    other = dvs.Presentation("01", DT, idle_time=7.0)
    with pytest.raises(PresentationError, match="differ in idle_steps"):
        dvs.simulate(model, [(images, labels, P), (images, labels, other)])
    with pytest.raises(DataError, match=r"shape \[4, 5\], its presentation 13"):
        collate([(torch.rand(4, 5), 1, P)], timed=True)
    with pytest.raises(DataError, match="a sample is a tuple"):
        collate([(torch.rand(4, 5), 1)])


def test_processes_share_what_is_drawn_for_a_batch():
    images, labels = data()
    whole = load((images, labels), random_onsets, place=Place(seed=2, epoch=1, batch=4))
    for rank in range(3):
        mine = images[rank::3], labels[rank::3]
        place = Place(seed=2, epoch=1, batch=4, rank=rank, world_size=3)
        assert list(load(mine, random_onsets, place=place).presentation) == list(
            whole.presentation[rank::3]
        )
    with pytest.raises(DataError, match="3 processes share"):
        load(mine, dvs.PresentationBatch([P] * N), place=place)


# -- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["time first", "batch first", "per timestep", "by sample"])
def test_training_takes_the_same_loaders(kind):
    images, labels = data()
    presentation = P
    pair, time_axis = {
        "time first": ((P.present(images), labels), 0),
        "batch first": ((P.present(images).transpose(0, 1), labels), 1),
        "per timestep": ((P.present(images), labels.expand(P.n_timesteps, -1)), 0),
        "by sample": ((images, labels), None),
    }[kind]
    if kind == "by sample":
        presentation = dvs.PresentationBatch([P] * N)

    def trained(batch, presentation, **options):
        model = wrapped()
        losses = [{"name": "cross_entropy_loss"}, {"name": "energy_loss", "weight": 0.1}]
        with build_criterion(losses, model=model) as criterion:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            fit(model, [batch], presentation, criterion, optimizer, epochs=2, **options)
        return torch.cat([w.detach().flatten() for w in model.parameters()])

    expected = trained((images, labels), P)
    found = trained(pair, presentation, time_axis=time_axis)
    assert not torch.equal(expected, torch.cat([w.flatten() for w in wrapped().parameters()]))
    assert torch.allclose(found, expected, atol=1e-6)


def test_each_sample_of_a_batch_can_vary_by_itself():
    varying = VaryingPresentation(
        base=dvs.Presentation("0111", DT), onset_jitter=6.0, duration=(8.0, 20.0), by_sample=True
    )
    batch = varying.at(0, 1, 2, 8)
    assert list(batch) == list(varying.at(0, 1, 2, 8))
    # Drawn one after the other, so that the first of many are those of few.
    assert list(batch)[:5] == list(varying.at(0, 1, 2, 5))
    assert list(batch) != list(varying.at(0, 1, 3, 8))
    assert len(set(batch.lengths.tolist())) > 2
    images, _ = data(8)
    assert wrapped()(images, batch).membrane.shape[:2] == (batch.n_timesteps, 8)


# -- long runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1.0, 4.0, 100.0])
@pytest.mark.parametrize("name", ["sequential_init_hidden", "norse_list", "bare_gru"])
def test_a_simulation_in_chunks_is_the_simulation(name, every):
    model = wrapped(name)
    images, labels = data()
    loader = batches(images, labels)
    whole, pieces = dvs.simulate(model, loader, P), dvs.simulate(model, loader, P, every=every)
    check_same(pieces, whole, ("trace", "environment"))
    assert torch.allclose(pieces.trace.membrane, whole.trace.membrane, atol=1e-6)
    assert pieces.trace.rasters == {}
    assert "chunks" in pieces.trace.missing


def test_chunks_of_samples_of_different_lengths():
    model = wrapped()
    images, labels = data()
    presentation = dvs.PresentationBatch([SHORT, P] * 3 + [P])
    loader = batches(images, labels)
    whole = dvs.simulate(model, loader, presentation)
    pieces = dvs.simulate(model, loader, presentation, every=5.0)
    check_same(pieces, whole, ("trace", "environment"))


def test_labels_that_ignore_the_reaction_time_are_decided_like_others():
    images, labels = data()
    over_time = labels.expand(P.n_timesteps, -1)
    ignoring = over_time.masked_fill(~P.supervised_mask[:, None], -1)
    rules = {"any": MembraneMargin(1e-6)}
    every, some = (
        dvs.simulate(wrapped(), [(P.present(images), each)], P, time_axis=0, rules=rules)
        for each in (over_time, ignoring)
    )
    assert bool(every.moments["any"].right.any())
    assert torch.equal(some.moments["any"].right, every.moments["any"].right)
    assert some.moments["any"].accuracy == every.moments["any"].accuracy


@pytest.mark.parametrize("time_axis", [None, 0, 1])
@pytest.mark.parametrize("batched", [False, True])
def test_a_batch_without_samples_is_refused(time_axis, batched):
    images = torch.rand(0, FEATURES) if time_axis is None else torch.rand(P.n_timesteps, 0, 2)
    if time_axis == 1:
        images = images.transpose(0, 1)
    presentation = dvs.PresentationBatch([P]) if batched else P
    empty = images, torch.zeros(0, dtype=torch.int64)
    with pytest.raises(DataError, match="without samples"):
        dvs.simulate(wrapped(), [empty], presentation, time_axis=time_axis)
