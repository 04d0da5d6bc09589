"""Timed loaders, per-sample presentations and chunks in both trainers, against loops by hand."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch import Callback
from nets import CLASSES, FEATURES, Stopped, data, net
from test_lightning import _fit as lightning_fit
from test_lightning import _trainer as lightning_trainer
from torch import nn
from torch.utils.data import DataLoader

import dynvision_snn as dvs
from dynvision_snn.config import parse_config
from dynvision_snn.errors import DataError, LossError, TimingError, TrainingError
from dynvision_snn.losses import BaseLoss, build_criterion
from dynvision_snn.sources import collate
from dynvision_snn.training import EnergyTarget, TimedClassifier, VaryingPresentation, fit
from dynvision_snn.training.batches import BatchLoader
from dynvision_snn.training.lightning import ResumeCheckpoint, simulate_checkpoint, train
from dynvision_snn.training.monitor import LayerProbe
from dynvision_snn.varying import draw_generator

P = dvs.Presentation("0111", dt=2.0, n_timesteps=8, reaction_time=4.0, idle_time=6.0)
CRITERION = [{"name": "cross_entropy_loss"}, {"name": "energy_loss", "weight": 0.3}]
N, SIZES = 12, (5, 4, 3)
SEED = 9

pytestmark = pytest.mark.filterwarnings("ignore::dynvision_snn.errors.PresentationWarning")


def model():
    torch.manual_seed(0)
    return dvs.wrap(net(dropout=0.0), dt=2.0)


def draw(n_samples, generator):
    return dvs.PresentationBatch.random(
        n_samples, generator, 2.0, onset=(2.0, 10.0), shown=(6.0, 14.0), idle_time=4.0
    )


VARYING = VaryingPresentation(base=P, onset_jitter=8.0, duration=(12.0, 24.0), by_sample=True)
ONES = draw(N, draw_generator(77))


def batches():
    images, labels = data()[0][:N]
    return list(zip(images.split(SIZES), labels.split(SIZES), strict=True))


def over_time(labels, presentation=P):
    """Labels that change in the middle of the run."""
    late = torch.arange(presentation.n_timesteps)[:, None] >= 6
    return torch.where(late, (labels + 1) % CLASSES, labels)


def loader(kind):
    """A loader, the presentation that goes with it, and its time axis."""
    pairs = batches()
    timed = [(P.present(images), labels) for images, labels in pairs]
    if kind == "time first":
        return timed, P, 0
    if kind == "batch first":
        return [(inputs.transpose(0, 1), labels) for inputs, labels in timed], P, 1
    if kind == "labels per timestep":
        return [(inputs, over_time(labels)) for inputs, labels in timed], P, 0
    if kind == "labels per timestep, batch first":
        return [(x.transpose(0, 1), over_time(y).T) for x, y in timed], P, 1
    if kind == "one for each sample":
        return pairs, ONES, None
    if kind == "drawn":
        return pairs, draw, None
    if kind == "varying":
        return pairs, VARYING, None
    if kind == "from the loader":
        return (
            [(*pair, draw(len(pair[1]), draw_generator(i))) for i, pair in enumerate(pairs)],
            (None),
            None,
        )
    assert kind == "images"
    return pairs, P, None


KINDS = (
    "images",
    "time first",
    "batch first",
    "labels per timestep",
    "labels per timestep, batch first",
    "one for each sample",
    "drawn",
    "varying",
    "from the loader",
)


def plain(kind, every=None, criterion=CRITERION, epochs=2, trained=None):
    """`fit`."""
    trained = trained or model()
    given, presentation, time_axis = loader(kind)
    with build_criterion(criterion, model=trained) as built:
        optimizer = torch.optim.Adam(trained.parameters(), lr=0.01)
        history = fit(
            trained,
            given,
            presentation,
            built,
            optimizer,
            epochs=epochs,
            time_axis=time_axis,
            truncate=every,
            seed=SEED,
        )
    return trained, history


def with_lightning(kind, every=None, criterion=CRITERION, epochs=2, **options):
    trained = model()
    given, presentation, time_axis = loader(kind)
    classifier = TimedClassifier(
        trained,
        presentation,
        criterion,
        time_axis=time_axis,
        truncate=every,
        optimizer_kwargs={"lr": 0.01},
        seed=SEED,
    )
    trainer = lightning_fit(classifier, *2 * [as_loader(given)], max_epochs=epochs, **options)
    return trained, trainer


def by_hand(kind, every=None):
    """The loop that a user would write, with torch's own cross-entropy and no `chunks`."""
    trained = model()
    given, source, time_axis = loader(kind)
    optimizer = torch.optim.Adam(trained.parameters(), lr=0.01)
    for epoch in range(2):
        seen = 0
        for number, (inputs, labels, *own) in enumerate(given):
            n = len(inputs) if time_axis != 0 else inputs.shape[1]
            shown = own[0] if own else source
            if shown in (draw, VARYING):
                shown = shown(n, draw_generator(SEED, epoch, number))
            elif isinstance(shown, dvs.PresentationBatch) and not own:
                shown = shown[seen : seen + n]
            seen += n
            if time_axis is None:
                inputs = shown.present(inputs)
            elif time_axis == 1:
                inputs = inputs.transpose(0, 1)
            if labels.ndim == 2 and time_axis == 1:
                labels = labels.T
            supervised = shown.supervised_mask
            supervised = supervised if supervised.ndim == 2 else supervised[:, None]
            targets = torch.where(supervised, labels, -1)
            optimizer.zero_grad()
            steps = int((every or shown.duration) / 2.0)
            state = None
            if shown.idle_steps:
                with torch.no_grad():
                    state = trained(torch.zeros(shown.idle_steps, *inputs.shape[1:])).state.detach()
            count = int((targets >= 0).sum())
            for start in range(0, len(inputs), steps):
                piece = slice(start, start + steps)
                run = trained(inputs[piece], state=state)
                state = run.state.detach()
                loss = nn.functional.cross_entropy(
                    run.membrane.flatten(0, 1),
                    targets[piece].flatten(),
                    ignore_index=-1,
                    reduction="sum",
                )
                (loss / count).backward()
            optimizer.step()
    return trained


def as_loader(given):
    """What Lightning takes for one loader; a list would be several."""
    return DataLoader(given, batch_size=None, collate_fn=lambda batch: batch) if given else []


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def check_close(one, other, **tolerance):
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


# -- the two trainers and a loop by hand ----------------------------------------------------------


@pytest.mark.parametrize("every", [None, 6.0])
@pytest.mark.parametrize("kind", KINDS)
def test_lightning_and_the_plain_loop_train_to_the_same_weights_bit_for_bit(kind, every):
    expected, history = plain(kind, every)
    found, trainer = with_lightning(kind, every)
    assert not same(expected, model())
    assert same(found, expected)
    logged = trainer.callback_metrics
    assert float(logged["train_loss"]) == pytest.approx(history[-1].loss, rel=1e-6)
    for label, value in history[-1].components.items():
        assert float(logged[f"loss/{label}"]) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("every", [None, 2.0, 6.0, 1000.0])
@pytest.mark.parametrize("kind", KINDS)
def test_both_are_the_loop_by_hand(kind, every):
    found, _ = plain(kind, every, ["cross_entropy_loss"])
    check_close(found, by_hand(kind, every), rtol=1e-4, atol=1e-5)


def test_what_was_shown_beforehand_trains_like_images():
    expected, _ = plain("images")
    for kind in ("time first", "batch first"):
        check_close(plain(kind)[0], expected)
    assert not same(plain("labels per timestep")[0], expected)


@pytest.mark.parametrize("kind", ["one for each sample", "labels per timestep"])
def test_chunks_have_the_figures_of_whole_runs(kind):
    """Losses, accuracies and energies, in training and validation; the weights stay."""
    given, presentation, time_axis = loader(kind)
    logged = []
    for every in (None, 4.0):
        classifier = TimedClassifier(
            model(),
            presentation,
            CRITERION,
            time_axis=time_axis,
            truncate=every,
            optimizer="SGD",
            optimizer_kwargs={"lr": 0.0},
        )
        trainer = lightning_fit(classifier, *2 * [as_loader(given)], max_epochs=1)
        assert trainer.global_step == len(SIZES)
        logged.append(trainer.callback_metrics)
    whole, pieces = logged
    assert whole.keys() == pieces.keys() > {"train_loss", "val_loss", "train_joules", "val_joules"}
    for name, value in whole.items():
        assert float(pieces[name]) == pytest.approx(float(value), rel=1e-5, nan_ok=True), name


@pytest.mark.parametrize("every", [None, 6.0])
def test_a_batch_with_padding_has_the_gradients_of_its_samples_alone(every):
    """Of cross-entropy, weighed by each sample's supervised timesteps, and energy, by samples."""
    images, labels = data()[0][:4]
    patterns = ("0111", "110", "0011111", "1")
    ones = [dvs.Presentation(p, dt=2.0, idle_time=4.0) for p in patterns]

    def gradients(images, labels, presentation, *, share):
        trained = model()
        before = [p.detach().clone() for p in trained.parameters()]
        weighed = [
            entry | {"weight": entry.get("weight", 1.0) * part}
            for entry, part in zip(CRITERION, share, strict=True)
        ]
        with build_criterion(weighed, model=trained) as criterion:
            optimizer = torch.optim.SGD(trained.parameters(), lr=1.0)
            pair = [(images, labels)]
            fit(trained, pair, presentation, criterion, optimizer, epochs=1, truncate=every)
        return [b - p.detach() for b, p in zip(before, trained.parameters(), strict=True)]

    together = gradients(images, labels, dvs.PresentationBatch(ones), share=(1.0, 1.0))
    supervised = [int(one.supervised_mask.sum()) for one in ones]
    alone = [
        gradients(
            images[b : b + 1],
            labels[b : b + 1],
            one,
            share=(supervised[b] / sum(supervised), 1 / len(ones)),
        )
        for b, one in enumerate(ones)
    ]
    for whole, *parts in zip(together, *alone, strict=True):
        torch.testing.assert_close(whole, sum(parts), rtol=1e-4, atol=1e-6)


# -- presentations that are drawn -----------------------------------------------------------------


def test_draws_differ_by_batch_and_epoch_and_come_again():
    shown = []
    trained = model()
    handle = trained.register_forward_pre_hook(lambda _, args: shown.append(args[1]))
    plain("drawn", trained=trained)
    handle.remove()
    expected = [
        draw(size, draw_generator(SEED, epoch, number))
        for epoch in range(2)
        for number, size in enumerate(SIZES)
    ]
    assert shown == expected
    assert len(set(map(repr, shown))) > 3


@pytest.mark.parametrize("kind", ["drawn", "one for each sample", "from the loader", "varying"])
def test_a_validation_measures_what_simulate_does(kind):
    trained, trainer = with_lightning(kind)
    given, source, _ = loader(kind)
    source = VARYING.base if kind == "varying" else source
    result = dvs.simulate(trained, given, source, seed=SEED)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["val_accuracy"] == pytest.approx(result.accuracy)
    assert logged["val_firing_rate"] == pytest.approx(result.budget.total.firing_rate)
    assert logged["val_joules"] == pytest.approx(float(result.budget.joules("45nm-fp32")))
    by_phase = result.accuracy_by_phase
    for phase in ("reaction", "null"):
        assert logged[f"val_accuracy/{phase}"] == pytest.approx(by_phase[phase], nan_ok=True)


def test_validation_may_show_something_else():
    trained, shown = model(), []
    classifier = TimedClassifier(trained, draw, CRITERION, validation_presentation=P)

    def note(module, args):
        if not module.training:
            shown.append(args[1])

    trained.register_forward_pre_hook(note)
    lightning_fit(classifier, *2 * [as_loader(batches())], max_epochs=1)
    assert shown == [P] * len(SIZES)


def test_samples_with_presentations_of_their_own_train_through_a_data_loader():
    images, labels = data()[0][:N]
    samples = [(image, label, one) for image, label, one in zip(images, labels, ONES, strict=True)]
    found = DataLoader(samples, 5, collate_fn=collate, num_workers=1)
    expected, criterion = model(), ["cross_entropy_loss"]
    classifier = TimedClassifier(expected, None, criterion, optimizer_kwargs={"lr": 0.01})
    lightning_fit(classifier, found, found, max_epochs=1)
    other = model()
    with build_criterion(criterion, model=other) as built:
        optimizer = torch.optim.Adam(other.parameters(), lr=0.01)
        pairs = list(zip(images.split(5), labels.split(5), strict=True))
        fit(other, pairs, ONES, built, optimizer, epochs=1)
    check_close(expected, other)


@pytest.mark.parametrize("stop_at", [2, 4])
def test_a_resumed_epoch_goes_on_with_the_presentations_of_its_next_samples(tmp_path, stop_at):
    """Stopped in the first or second epoch of three batches, after one or two of them."""
    samples = torch.utils.data.TensorDataset(*data()[0][:N])

    def run(until=-1, checkpoint=None):
        classifier = TimedClassifier(model(), ONES, CRITERION, optimizer_kwargs={"lr": 0.01})
        trainer = lightning_trainer(
            callbacks=[Stop(until), ResumeCheckpoint(tmp_path, every_n_steps=1)],
            enable_checkpointing=True,
        )
        try:
            trainer.fit(classifier, BatchLoader(samples, 4), ckpt_path=checkpoint)
        except Stopped:
            return None
        return classifier.model

    unbroken = run()
    assert run(until=stop_at) is None
    resumed = run(checkpoint=str(tmp_path / "last.ckpt"))
    assert same(resumed, unbroken)


class Stop(Callback):
    """Ends a training in the middle of a step."""

    def __init__(self, at):
        self.at = at

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == self.at:
            raise Stopped


# -- energy limits in pieces ----------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["hertz", "activity"])
def test_a_limit_is_judged_by_the_run_and_not_by_its_pieces(unit):
    """The energy is the run's, padding left out, and the weight moves once per batch."""
    target = EnergyTarget(0.1, unit, rate=0.5, damping=0.0)
    images, labels = batches()[0]
    presentation = ONES[: len(labels)]
    trained = model()
    targets = presentation.targets(labels)
    with build_criterion([target], model=trained) as criterion:
        for _ in range(2):
            for piece in trained.chunks(images, presentation, every=6.0):
                criterion(piece.membrane, targets[piece.steps], whole=targets)
        multiplier, energy = float(target.multiplier), float(target.energy)
        penalty = sum(
            float(criterion(piece.membrane, targets[piece.steps], whole=targets).detach())
            for piece in trained.chunks(images, presentation, every=6.0)
        )
        target.eval()
        trained(images, presentation)
        criterion(None, None)
    whole = float(target.energy)
    assert energy == pytest.approx(whole, rel=1e-6)
    assert multiplier == pytest.approx(2 * 0.5 * (whole / 0.1 - 1), rel=1e-5)
    assert penalty == pytest.approx(multiplier * whole / 0.1, rel=1e-5)


def test_a_limit_holds_under_truncation():
    target = EnergyTarget(20.0, "hertz", rate=0.2)
    free, _ = plain("images", 6.0, ["cross_entropy_loss"], epochs=25)
    held, _ = plain("images", 6.0, ["cross_entropy_loss", target], epochs=25)
    rates = [dvs.simulate(one, batches(), P).budget.total.firing_rate for one in (free, held)]
    assert rates[0] > 26
    assert rates[1] < 24


def test_a_limit_in_joules_needs_whole_runs():
    with pytest.raises(TrainingError, match="a limit in joules is of a whole run"):
        TimedClassifier(model(), P, [EnergyTarget(1e-6, "joules", "45nm-fp32")], truncate=4.0)
    with pytest.raises(LossError, match="has no ignore_index"):
        plain("images", 4.0, [EnergyTarget(1e-6, "joules", "45nm-fp32")])


# -- figures of layers ----------------------------------------------------------------------------


def test_figures_of_layers_leave_padding_out_and_chunks_together():
    images, labels = batches()[0]
    presentation = ONES[: len(labels)]
    trained = model()
    with dvs.EnergyMeter(trained) as meter:
        trained(images, presentation)
    rates = {row.name: row.firing_rate for row in meter.budget().layers}
    for every in (None, 4.0):
        probe = LayerProbe()
        with probe.on(trained):
            runs = [trained(images, presentation)] if every is None else []
            runs += [] if every is None else list(trained.chunks(images, presentation, every=4.0))
        figures = probe.figures()
        assert len(runs) == (1 if every is None else math.ceil(presentation.n_timesteps / 2))
        for name in ("2", "5"):
            assert figures[name].rate == pytest.approx(rates[name], rel=1e-5)


# -- what is refused ------------------------------------------------------------------------------


def trainers():
    def lightning(pairs, presentation, time_axis=None, **options):
        classifier = TimedClassifier(
            model(), presentation, ["cross_entropy_loss"], time_axis=time_axis, **options
        )
        lightning_fit(classifier, as_loader(pairs), [], max_epochs=1)

    def loop(pairs, presentation, time_axis=None, **options):
        trained = model()
        before = [p.detach().clone() for p in trained.parameters()]
        with build_criterion(["cross_entropy_loss"], model=trained) as criterion:
            optimizer = torch.optim.Adam(trained.parameters())
            try:
                fit(
                    trained,
                    pairs,
                    presentation,
                    criterion,
                    optimizer,
                    epochs=1,
                    time_axis=time_axis,
                    **options,
                )
            finally:
                # No step is taken by what is wrong.
                for old, new in zip(before, trained.parameters(), strict=True):
                    assert torch.equal(old, new)

    return [lightning, loop]


@pytest.mark.parametrize("trained", trainers())
@pytest.mark.parametrize("truncate", [None, 4.0])
@pytest.mark.parametrize("wrong", [CLASSES, -2, 10**12])
def test_labels_that_are_no_class_are_told(trained, truncate, wrong):
    images, labels = batches()[0]
    odd = labels.clone()
    odd[1] = wrong
    timed, per_timestep = P.present(images), over_time(labels).clone()
    per_timestep[0, 2] = wrong  # not supervised, and so nothing that a loss would look at
    expected = f"the label {wrong}; expected one of the model's {CLASSES} classes"
    for batch, axis in (((images, odd), None), ((timed, odd), 0), ((timed, per_timestep), 0)):
        with pytest.raises(DataError, match=expected):
            trained([batch], P, axis, truncate=truncate)


@pytest.mark.parametrize("trained", trainers())
def test_other_data_that_does_not_fit_is_told(trained):
    images, labels = batches()[0]
    many = dvs.PresentationBatch([P] * (len(labels) + 1))
    for batch, source, told in (
        ((images, labels), None, "there is no presentation"),
        ((images, labels, P), P, "there is one already"),
        ((images, labels.float()), P, "int64"),
        ((images, labels), dvs.Presentation("01", 2.0, ignore_index=1), "ignore_index is 1"),
        ((images, labels), lambda n, g: many, "presentations for 6"),
    ):
        with pytest.raises(dvs.errors.DynvisionError, match=told):
            trained([batch], source)
    with pytest.raises(TimingError, match="shorter than a timestep"):
        trained([(images, labels)], P, truncate=0.5)


def test_presentations_for_more_samples_than_the_loader_gave_are_told():
    many = dvs.PresentationBatch([P] * (N + 1))
    with build_criterion(["cross_entropy_loss"], model=(trained := model())) as criterion:
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
        with pytest.raises(
            DataError, match=f"{N} samples, but there are presentations for {N + 1}"
        ):
            fit(trained, batches(), many, criterion, optimizer, epochs=1)


def test_ignored_labels_train_nothing():
    images, labels = batches()[0]
    ignored = torch.full_like(labels, -1)
    trained = model()
    before = [p.detach().clone() for p in trained.parameters()]
    with build_criterion(["cross_entropy_loss"], model=trained) as criterion:
        optimizer = torch.optim.SGD(trained.parameters(), lr=1.0)
        fit(trained, [(images, ignored)], P, criterion, optimizer, epochs=1)
    for old, new in zip(before, trained.parameters(), strict=True):
        assert torch.equal(old, new)


def test_a_loss_of_whole_runs_is_refused_in_chunks():
    class Unmasked(BaseLoss):
        def compute_loss(self, outputs, targets):
            return outputs.square().mean(-1)

    with pytest.raises(LossError, match="has no ignore_index"):
        plain("images", 4.0, [{"loss": Unmasked()}])


# -- from a file ----------------------------------------------------------------------------------


def timed_data():
    """Samples that have time themselves: 6 timesteps, with a label each."""
    parts = []
    for part in data(20, 8):
        images, labels = part.tensors
        shown = images[:, None].expand(-1, 6, FEATURES) * torch.linspace(0, 2, 6)[:, None]
        parts.append(torch.utils.data.TensorDataset(shown, labels[:, None].expand(-1, 6)))
    return tuple(parts)


def test_a_configuration_trains_on_timed_data_and_draws_by_sample(settings):
    settings["data"] |= {"factory": "test_timed_training:timed_data", "timed": True}
    settings["training"] |= {"epochs": 1, "truncate": 6.0}
    del settings["presentation"]["reaction_time"]
    result = train(parse_config(settings), progress=False)
    config = parse_config(settings)
    measured = simulate_checkpoint(config, f"{settings['out']}/{result.checkpoint}")
    assert measured.accuracy == pytest.approx(result.accuracy)
    assert measured.presentation.n_timesteps == 6

    settings["data"] = {"factory": "nets:data", "validation": 0.2}
    settings["presentation"]["varying"] = {"onset_jitter": 4.0, "by_sample": True}
    settings["out"] += "-varying"
    assert train(parse_config(settings), progress=False).epochs == 1
