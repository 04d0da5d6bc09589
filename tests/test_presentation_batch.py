"""Samples with presentations of their own: a batch of them is its samples run one by one."""

from __future__ import annotations

import json
import warnings
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dynvision_snn as dvs
from dynvision_snn.errors import EnergyError, PresentationError, PresentationWarning, TimingError
from dynvision_snn.losses import CrossEntropyLoss, EnergyLoss, build_criterion
from dynvision_snn.losses.synops import SynopsLoss
from dynvision_snn.presentation import Phase
from dynvision_snn.presentation_batch import time_range
from dynvision_snn.training.firing import FiringRate
from tests.models import CLASSES, DT, FEATURES, STYLES

P = dvs.Presentation
SHARED = {"dt": DT, "reaction_time": 1.0, "idle_time": 2.0}
# Of different lengths, onsets and numbers of onsets; nothing but null input in one.
PATTERNS = ("0111", "1101110", "01", "111", "0000011")


def quietly(function, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PresentationWarning)
        return function(*args, **kwargs)


def ones_of(patterns=PATTERNS, **changed):
    return [quietly(P, pattern, **{**SHARED, **changed}) for pattern in patterns]


def images_of(n_samples, seed=4):
    return torch.rand(n_samples, FEATURES, generator=torch.Generator().manual_seed(seed)) * 3


def wrapped(name):
    style = STYLES[name]
    return dvs.wrap(style.fresh(), dt=DT, engine="step").eval()


@pytest.mark.parametrize("order", [("011", "0112"), ("0112", "011")])
@pytest.mark.parametrize("size", [1, 2])
def test_a_slice_takes_as_many_stimuli_as_its_batch(order, size):
    batch = quietly(dvs.PresentationBatch, [P(pattern, dt=DT) for pattern in order])
    images, labels = torch.rand(2, 2, FEATURES), torch.zeros(2, 2, dtype=torch.long)
    loader = [
        (images[:, start : start + size], labels[:, start : start + size])
        for start in range(0, 2, size)
    ]
    simulation = dvs.simulate(wrapped("sequential_init_hidden"), loader, batch)
    assert simulation.correct.shape[-1] == batch.n_timesteps
    for sample in range(2):
        some = slice(sample, sample + 1)
        alone = batch[some].present(images[:, some])
        assert torch.equal(alone, batch.present(images)[:, some])
        assert batch[some].at_dt(DT / 2).n_stimuli == 2
        assert dvs.PresentationBatch.from_dict(batch[some].to_dict()) == batch[some]


def test_fewer_stimuli_than_a_pattern_shows_are_refused():
    with pytest.raises(PresentationError, match="shows stimulus 2"):
        dvs.PresentationBatch([quietly(P, "012", dt=DT)], n_stimuli=1)


# -- the schedule ---------------------------------------------------------------------------------

patterns = st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple)


@settings(max_examples=60, deadline=None)
@given(st.lists(patterns, min_size=1, max_size=5), st.integers(0, 3), st.integers(0, 3))
def test_every_column_is_the_sample_and_then_padding(several, reaction, extra):
    ones = [quietly(P, p, 2.0, reaction_time=2.0 * reaction) for p in several]
    longest = max(one.n_timesteps for one in ones)
    batch = dvs.PresentationBatch(ones, n_timesteps=longest + extra)
    images = torch.rand(max(1, batch.n_stimuli), len(ones), 3)
    labels = torch.randint(0, 9, images.shape[:2])
    if batch.n_stimuli <= 1:
        images, labels = images[0], labels[0]
    inputs, targets = batch.present(images), batch.targets(labels)
    assert inputs.shape[:2] == targets.shape == (longest + extra, len(ones))
    for b, one in enumerate(ones):
        n = one.n_timesteps
        several_shown = batch.n_stimuli > 1 and one.n_stimuli > 1
        pick = slice(None, one.n_stimuli) if several_shown else 0
        shown = images[pick, b : b + 1] if batch.n_stimuli > 1 else images[b : b + 1]
        label = labels[pick, b : b + 1] if batch.n_stimuli > 1 else labels[b : b + 1]
        assert torch.equal(inputs[:n, b], one.present(shown)[:, 0])
        assert torch.equal(targets[:n, b], one.targets(label)[:, 0])
        assert not inputs[n:, b].any()
        assert (targets[n:, b] == -1).all()
        for mask in ("stimulus_mask", "reaction_mask", "supervised_mask", "phase_codes"):
            assert torch.equal(getattr(batch, mask)[:n, b], getattr(one, mask))
        assert not batch.supervised_mask[n:, b].any()
        assert (batch.phase_codes[n:, b] == Phase.PADDING).all()
        assert batch.active_mask[:, b].tolist() == [True] * n + [False] * (longest + extra - n)
        assert batch.onsets[b] == one.onsets


def test_inputs_are_one_object_while_nothing_changes():
    batch = dvs.PresentationBatch(ones_of(("0011", "0111")))
    inputs = list(batch.inputs_at(torch.rand(2, FEATURES)))
    same = [a is b for a, b in pairwise(inputs)]
    assert same == [False, False, True]


def test_gradients_reach_the_images_from_their_own_timesteps_alone():
    batch = dvs.PresentationBatch(ones_of(("0111", "1")))
    images = torch.rand(2, FEATURES, requires_grad=True)
    batch.present(images).sum().backward()
    assert images.grad.tolist() == [[3.0] * FEATURES, [1.0] * FEATURES]


def test_what_a_presentation_shares_is_shared():
    batch = dvs.PresentationBatch(ones_of(idle_time=5.0, null_value=0.5, ignore_index=-7))
    assert (batch.dt, batch.idle_steps, batch.null_value, batch.ignore_index) == (DT, 5, 0.5, -7)
    assert len(batch) == 5
    assert batch[1].pattern == (1, 1, 0, 1, 1, 1, 0)
    part = batch[2:4]
    assert isinstance(part, dvs.PresentationBatch)
    assert (len(part), part.n_timesteps) == (2, batch.n_timesteps)
    assert batch.duration == batch.n_timesteps * DT


def test_dict_and_json_give_the_same_batch_back():
    batch = dvs.PresentationBatch(ones_of(), n_timesteps=11)
    again = quietly(dvs.PresentationBatch.from_dict, json.loads(json.dumps(batch.to_dict())))
    assert again == batch
    assert hash(again) == hash(batch)
    assert batch[:2] != batch
    with pytest.raises(PresentationError, match="n_timesteps"):
        dvs.PresentationBatch.from_dict({"presentations": []})


def test_intervals_are_those_that_all_samples_share():
    batch = dvs.PresentationBatch([P("0011", dt=2.0), P("0111", dt=2.0)])
    assert [tuple(x) for x in batch.intervals()] == [(0.0, 2.0, 1), (4.0, 8.0, 3)]
    assert batch.stimulus_intervals() == [(4.0, 8.0, 1)]


@pytest.mark.parametrize(
    ("presentations", "error", "match"),
    [
        ([], PresentationError, "no presentations"),
        ([P("1", dt=1.0), "1"], PresentationError, "sample 1"),
        ([P("1", dt=1.0), P("1", dt=2.0)], TimingError, r"sample 1 has dt = 2 ms"),
        ([P("1", dt=1.0), P("1", dt=1.0, idle_time=3.0)], PresentationError, "idle_steps"),
        ([P("1", dt=1.0), P("1", dt=1.0, null_value=1.0)], PresentationError, "null_value"),
        ([P("1", dt=1.0), P("1", dt=1.0, ignore_index=-2)], PresentationError, "ignore_index"),
    ],
)
def test_batches_that_cannot_be_are_refused(presentations, error, match):
    with pytest.raises(error, match=match):
        dvs.PresentationBatch(presentations)


def test_a_length_shorter_than_the_longest_is_refused():
    with pytest.raises(PresentationError, match="longest presentation has 7"):
        dvs.PresentationBatch(ones_of(), n_timesteps=6)


@pytest.mark.parametrize("shape", [(4, FEATURES), (6, FEATURES)])
def test_another_number_of_samples_is_refused(shape):
    batch = dvs.PresentationBatch(ones_of())
    with pytest.raises(PresentationError, match="5 samples"):
        batch.inputs_at(torch.rand(shape))
    with pytest.raises(PresentationError, match="5 samples"):
        batch.targets(torch.zeros(shape[0], dtype=torch.long))


# -- random ones ----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 99),
    dt=st.sampled_from([0.1, 0.5, 1.0, 2.0]),
    onset=st.tuples(st.floats(0, 10), st.floats(0, 10)).map(sorted),
    shown=st.tuples(st.floats(3, 20), st.floats(3, 20)).map(sorted),
    extra=st.none() | st.floats(0, 20),
)
def test_random_onsets_durations_and_lengths_keep_their_ranges(seed, dt, onset, shown, extra):
    length = None if extra is None else (onset[1] + shown[1], onset[1] + shown[1] + extra)

    def drawn():
        generator = torch.Generator().manual_seed(seed)
        return quietly(
            dvs.PresentationBatch.random,
            6,
            generator,
            dt,
            onset=onset,
            shown=shown,
            length=length,
            reaction_time=1.0,
        )

    batch = drawn()
    assert batch == drawn()
    half = dt / 2 * (1 + 1e-6)
    for b, one in enumerate(batch):
        (start,) = batch.onsets[b]
        lasts = int(one.stimulus_mask.sum())
        assert onset[0] - half <= start * dt <= onset[1] + half
        assert shown[0] - half <= lasts * dt <= shown[1] + half
        if length is None:
            assert one.n_timesteps == start + lasts
        else:
            assert length[0] - half <= one.duration <= length[1] + 2 * half


def test_the_same_draws_at_another_dt_are_the_same_times():
    def drawn(dt):
        generator = torch.Generator().manual_seed(3)
        return dvs.PresentationBatch.random(8, generator, dt, onset=(5, 20), shown=(10, 30))

    for coarse, fine in zip(drawn(1.0), drawn(0.25), strict=True):
        assert abs(coarse.onsets[0] * 1.0 - fine.onsets[0] * 0.25) <= 0.625
        assert abs(coarse.duration - fine.duration) <= 1.25


@pytest.mark.parametrize(
    ("ranges", "error", "match"),
    [
        ({"onset": (5, 1), "shown": 10}, PresentationError, "shortest first"),
        ({"onset": (1, 2, 3), "shown": 10}, PresentationError, "two times"),
        ({"onset": 0, "shown": (0.0, 10)}, PresentationError, "less than a timestep"),
        ({"onset": -1, "shown": 10}, TimingError, "onset"),
        ({"onset": 5, "shown": (5, 10), "length": 12}, PresentationError, "as late as 15 ms"),
        ({"onset": 0, "shown": 10, "n_samples": 0}, PresentationError, "at least one sample"),
    ],
)
def test_draws_that_cannot_be_are_refused(ranges, error, match):
    n_samples = ranges.pop("n_samples", 3)
    with pytest.raises(error, match=match):
        dvs.PresentationBatch.random(n_samples, torch.Generator(), 1.0, **ranges)


def test_one_time_is_a_range():
    assert time_range(3, "onset") == (3.0, 3.0)


# -- a batch is its samples run alone -------------------------------------------------------------


@pytest.mark.parametrize("name", STYLES)
def test_membranes_are_those_of_each_sample_alone(name):
    model, images = wrapped(name), images_of(5)
    batch = dvs.PresentationBatch(ones_of())
    together = model(images, batch).membrane
    assert together.shape[:2] == (batch.n_timesteps, 5)
    for b, one in enumerate(batch):
        alone = model(images[b : b + 1], one).membrane
        assert torch.allclose(together[: one.n_timesteps, b], alone[:, 0], atol=1e-5)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("name", STYLES)
def test_energy_loss_and_gradient_are_those_of_each_sample_alone(name, p):
    model, images = wrapped(name), images_of(5)
    ones = ones_of()
    with EnergyLoss(p=p) as energy:
        energy.register_hooks(model)
        model(images, dvs.PresentationBatch(ones, n_timesteps=9))
        together = energy()
        together.backward()
        gradients = [None if w.grad is None else w.grad.clone() for w in model.parameters()]
        model.zero_grad()
        alone = []
        for b, one in enumerate(ones):
            model(images[b : b + 1], one)
            alone.append(energy())
        torch.stack(alone).mean().backward()
    assert together > 0
    assert torch.allclose(together, torch.stack(alone).mean(), rtol=1e-5)
    for gradient, weight in zip(gradients, model.parameters(), strict=True):
        if gradient is not None:
            assert torch.allclose(gradient, weight.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "build",
    [
        SynopsLoss,
        lambda: SynopsLoss(relative=False),
        lambda: SynopsLoss(profile="loihi"),
        FiringRate,
    ],
)
@pytest.mark.parametrize("name", ["sequential_init_hidden", "norse_list", "loop_inside"])
def test_costs_that_are_trained_on_are_those_of_each_sample_alone(name, build):
    model, images, ones = wrapped(name), images_of(5), ones_of()
    with torch.no_grad():
        loss = build()
        loss.register_hooks(model)
        model(images, dvs.PresentationBatch(ones, n_timesteps=9))
        together = loss.compute_loss()
        alone = []
        for b, one in enumerate(ones):
            model(images[b : b + 1], one)
            alone.append(loss.compute_loss())
        loss.remove_hooks()
    assert together.sum() > 0
    assert torch.allclose(together, torch.cat(alone), rtol=1e-4)


def test_a_mean_over_padding_would_be_another_number():
    """What the test above holds the loss to can fail."""
    model, images = wrapped("sequential_init_hidden"), images_of(5)
    with EnergyLoss() as energy, torch.no_grad():
        energy.register_hooks(model)
        batch = dvs.PresentationBatch(ones_of())
        model(images, batch)
        right = energy()
        model(batch.present(images))
        assert not torch.allclose(energy(), right, rtol=1e-2)


def metered(model, runs, **options):
    with dvs.EnergyMeter(model, **options) as meter, torch.no_grad():
        for images, presentation in runs:
            model(images, presentation)
    return meter


def check_same_budget(one, other):
    assert one.n_samples == other.n_samples
    assert one.phases == other.phases
    steps = min(one.n_timesteps, other.n_timesteps)
    for longer in (one, other):
        assert not longer.samples[:, steps:].any()
    assert torch.equal(one.samples[:, :steps], other.samples[:, :steps])
    assert [row.name for row in one.counts] == [row.name for row in other.counts]
    for mine, theirs in zip(one.counts, other.counts, strict=True):
        assert mine.identity() == theirs.identity()
        assert (mine.least, mine.most) == pytest.approx((theirs.least, theirs.most), rel=1e-3)
        assert mine.series.keys() == theirs.series.keys()
        for name, counts in mine.series.items():
            found = theirs.series[name]
            assert torch.allclose(counts[:, :steps], found[:, :steps], rtol=1e-5), (mine.name, name)
            assert not counts[:, steps:].any()


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("name", STYLES)
def test_the_energy_of_a_batch_is_that_of_its_samples_alone(name, per_sample):
    model, images, ones = wrapped(name), images_of(5), ones_of()
    together = metered(
        model, [(images, dvs.PresentationBatch(ones, n_timesteps=9))], per_sample=per_sample
    )
    alone = metered(
        model,
        [(images[b : b + 1], one) for b, one in enumerate(ones)],
        per_sample=per_sample,
    )
    check_same_budget(together.budget(), alone.budget())
    check_same_budget(together.budget().idle, alone.budget().idle)
    if per_sample:
        mine, theirs = together.sample_energy, alone.sample_energy
        assert torch.equal(mine.timesteps["whole"], theirs.timesteps["whole"])
        for quantity in ("spikes", "synops_ac", "synops_mac", "neuron_updates", "synops_dense"):
            assert torch.allclose(mine.operations(quantity), theirs.operations(quantity))


def test_the_energy_of_padding_would_be_seen():
    """What the test above holds the meter to can fail."""
    model, images, ones = wrapped("sequential_init_hidden"), images_of(5), ones_of()
    padded = metered(model, [(images, dvs.PresentationBatch(ones))]).budget()
    inputs = dvs.PresentationBatch(ones).present(images)
    with dvs.EnergyMeter(model) as meter, torch.no_grad():
        model(inputs)
    assert meter.budget().total.neuron_updates > padded.total.neuron_updates
    with pytest.raises(AssertionError):
        check_same_budget(meter.budget(), padded)


def test_moments_of_samples_have_onsets_of_their_own():
    model, images, ones = (
        wrapped("sequential_init_hidden"),
        images_of(3),
        ones_of(("0111", "1", "0001")),
    )
    nan = torch.nan
    with dvs.EnergyMeter(model, per_sample=True) as together, torch.no_grad():
        model(images, dvs.PresentationBatch(ones))
        onsets = torch.tensor([[1, 0, 3], [-1, -1, -1]])
        together.mark("here", torch.tensor([[2.0, 0.0, nan], [nan] * 3]), onsets)
        with pytest.raises(EnergyError, match="its sample's own"):
            together.mark("there", torch.tensor([[0.0, 1.0, 0.0]]), onsets[:1])
    with dvs.EnergyMeter(model, per_sample=True) as alone, torch.no_grad():
        for b, (time, onset) in enumerate([(2.0, 1), (0.0, 0), (nan, 3)]):
            model(images[b : b + 1], ones[b])
            alone.mark("here", torch.tensor([[time]]), [onset])
    mine = together.sample_energy.operations("spikes", "here")
    theirs = alone.sample_energy.operations("spikes", "here")
    assert torch.equal(mine[0].nan_to_num(-1), theirs[0].nan_to_num(-1))
    assert mine[1].isnan().all()


def test_cross_entropy_is_over_the_supervised_timesteps_of_all_samples():
    model, images = wrapped("sequential_init_hidden"), images_of(5)
    batch, labels = dvs.PresentationBatch(ones_of()), torch.randint(0, CLASSES, (5,))
    together = CrossEntropyLoss()(model(images, batch).membrane, batch.targets(labels))
    summed, count = CrossEntropyLoss(reduction="sum"), 0
    total = torch.zeros(())
    for b, one in enumerate(batch):
        targets = one.targets(labels[b : b + 1])
        total = total + summed(model(images[b : b + 1], one).membrane, targets)
        count += int((targets != -1).sum())
    assert torch.allclose(together, total / count, rtol=1e-5)


@pytest.mark.parametrize("every", [1.0, 3.0, 4.0, 7.0, 100.0])
def test_losses_of_chunks_add_up_where_samples_end_early(every):
    model, images = wrapped("sequential_init_hidden"), images_of(5)
    batch, labels = dvs.PresentationBatch(ones_of()), torch.randint(0, CLASSES, (5,))
    targets = batch.targets(labels)
    losses = [{"name": "cross_entropy_loss"}, {"name": "energy_loss", "weight": 2.0}]
    with torch.no_grad(), build_criterion(losses, model=model) as criterion:
        whole = criterion(model(images, batch).membrane, targets)
        parts = [
            criterion(chunk.membrane, targets[chunk.steps], whole=targets)
            for chunk in model.chunks(images, batch, every=every)
        ]
    assert torch.allclose(torch.stack(parts).sum(), whole, rtol=1e-5)


def test_samples_without_padding_are_an_ordinary_run():
    model, images = wrapped("sequential_init_hidden"), images_of(3)
    one = ones_of(("0111",))[0]
    assert torch.equal(
        model(images, dvs.PresentationBatch([one] * 3)).membrane, model(images, one).membrane
    )


def test_the_models_dt_is_the_batchs():
    with pytest.raises(TimingError, match="the presentation"):
        wrapped("sequential_init_hidden")(images_of(5), dvs.PresentationBatch(ones_of(dt=0.5)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(patterns, min_size=1, max_size=5),
    st.integers(0, 3),
    st.integers(0, 12),
    st.integers(0, 12),
)
def test_a_part_of_a_batch_is_that_of_the_whole(several, extra, one, other):
    batch = dvs.PresentationBatch(ones_of(several))
    batch = dvs.PresentationBatch(batch, batch.n_timesteps + extra)
    start, stop = sorted(min(t, batch.n_timesteps) for t in (one, other))
    part = batch.stimulus_between(start, stop), batch.phases_between(start, stop)
    assert torch.equal(part[0], batch.stimulus_at[start:stop])
    assert torch.equal(part[1], batch.phase_codes[start:stop])
    shape = (len(batch), 3) if batch.n_stimuli <= 1 else (batch.n_stimuli, len(batch), 3)
    images = torch.rand(shape)
    shown = list(batch.inputs_between(images, start, stop))
    assert len(shown) == stop - start
    assert all(map(torch.equal, shown, list(batch.inputs_at(images))[start:stop]))
