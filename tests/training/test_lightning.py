"""TimedClassifier: the plain loop's numbers, logged by name; validation that touches nothing."""

from __future__ import annotations

import math

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from lightning.pytorch import Trainer
from nets import CLASSES, FEATURES, data, net
from torch import nn
from torch.utils.data import DataLoader

import dynvision_snn as dvs
from dynvision_snn.config import parse_config
from dynvision_snn.errors import (
    ConfigError,
    DataError,
    ObservationError,
    TrainingError,
    WrapError,
)
from dynvision_snn.losses import build_criterion
from dynvision_snn.training import (
    EnergyMonitor,
    EnergyTarget,
    TimedClassifier,
    VaryingPresentation,
    fit,
)
from dynvision_snn.training.batches import BatchLoader
from dynvision_snn.training.lightning import train

PRESENTATION = dvs.Presentation("0111", dt=2.0, n_timesteps=8, reaction_time=4.0)
CRITERION = [{"name": "cross_entropy_loss"}, {"name": "energy_loss", "weight": 0.3}]


def _model(seed=0, **options):
    torch.manual_seed(seed)
    return dvs.wrap(net(**options), dt=2.0)


def _trainer(**options):
    settings = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "log_every_n_steps": 1,
    }
    return Trainer(**{**settings, **options})


def _fit(classifier, loader=None, validation=None, **options):
    trainer = _trainer(**options)
    training, test = data()
    validation = BatchLoader(test, 8) if validation is None else validation
    trainer.fit(classifier, loader or BatchLoader(training, 8, seed=3), validation or None)
    return trainer


def _plain(model, epochs=2, lr=0.01, criterion=CRITERION, clip=None):
    """The loop that a user would write."""
    loader = BatchLoader(data()[0], 8, seed=3)
    built = build_criterion(criterion, model=model)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for epoch in range(epochs):
        loader.order.set_epoch(epoch)
        for images, labels in loader:
            loss = built(model(images, PRESENTATION).membrane, PRESENTATION.targets(labels))
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()


def _same_weights(one, other):
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_lightning_trains_to_the_weights_of_the_plain_loop_bit_for_bit():
    """Dropout included, with a validation, a monitor and clipping in between."""
    plain = _model()
    torch.manual_seed(1)
    _plain(plain, clip=0.5)
    model = _model()
    classifier = TimedClassifier(model, PRESENTATION, CRITERION, optimizer_kwargs={"lr": 0.01})
    torch.manual_seed(1)
    _fit(classifier, callbacks=[EnergyMonitor()], gradient_clip_val=0.5)
    _same_weights(model, plain)


def test_the_losses_are_logged_by_the_names_of_the_reference():
    model = _model(dropout=0.0)
    training, _ = data(8, 8)
    classifier = TimedClassifier(model, PRESENTATION, CRITERION, optimizer_kwargs={"lr": 0.0})
    trainer = _fit(classifier, BatchLoader(training, 8), [], max_epochs=1)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}

    images, labels = training.tensors
    criterion = build_criterion(CRITERION, model=model)
    total = float(criterion(model(images, PRESENTATION).membrane, PRESENTATION.targets(labels)))
    raw = {name: float(value) for name, value in criterion.components.items()}
    criterion.remove_hooks()
    assert logged["train_loss"] == pytest.approx(total)
    assert logged["loss/CrossEntropyLoss"] == pytest.approx(raw["CrossEntropyLoss"])
    assert logged["loss/EnergyLoss"] == pytest.approx(raw["EnergyLoss"])
    assert logged["loss/EnergyLoss_weighted"] == pytest.approx(0.3 * raw["EnergyLoss"])
    assert logged["loss/CrossEntropyLoss_weighted"] == pytest.approx(raw["CrossEntropyLoss"])
    assert logged["train_loss_step"] == pytest.approx(total)
    result = dvs.simulate(model, [(images, labels)], PRESENTATION)
    assert logged["train_accuracy"] == pytest.approx(result.accuracy)
    assert logged["train_firing_rate"] == pytest.approx(result.budget.total.firing_rate)
    assert logged["train_joules"] == pytest.approx(float(result.budget.joules("45nm-fp32")))


def test_a_validation_measures_what_simulate_does():
    model = _model()
    classifier = TimedClassifier(model, PRESENTATION, CRITERION)
    trainer = _fit(classifier, max_epochs=1)
    test = data()[1]
    result = dvs.simulate(model, DataLoader(test, 7), PRESENTATION)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["val_accuracy"] == pytest.approx(result.accuracy)
    total = result.budget.total
    assert logged["val_firing_rate"] == pytest.approx(total.firing_rate)
    assert logged["val_synops"] == pytest.approx(total.synops_ac + total.synops_mac)
    assert logged["val_joules"] == pytest.approx(float(result.budget.joules("45nm-fp32")))

    model.eval()
    criterion = build_criterion(CRITERION, model=model)
    images, labels = test.tensors
    with torch.no_grad():
        whole = float(criterion(model(images, PRESENTATION).membrane, PRESENTATION.targets(labels)))
    assert logged["val_loss"] == pytest.approx(whole, rel=1e-5)
    cross_entropy = float(criterion.components["CrossEntropyLoss"])
    assert logged["val_objective"] == pytest.approx(math.exp(-cross_entropy), rel=1e-5)


def test_accuracies_by_phase_are_those_of_each_timestep():
    model = _model(dropout=0.0)
    classifier = TimedClassifier(model, PRESENTATION, CRITERION, optimizer_kwargs={"lr": 0.0})
    trainer = _fit(classifier, max_epochs=1)
    images, labels = data()[1].tensors
    right = model(images, PRESENTATION).membrane.argmax(-1) == labels
    for name, mask in {
        "reaction": PRESENTATION.reaction_mask,
        "supervised": PRESENTATION.supervised_mask,
    }.items():
        found = float(trainer.callback_metrics[f"val_accuracy/{name}"])
        assert found == pytest.approx(float(right[mask].double().mean()))


@pytest.mark.parametrize("target", [False, True])
def test_a_validation_never_touches_the_training(target):
    weights = {}
    for validated in (True, False):
        extra = [EnergyTarget(20.0, "hertz")] if target else []
        model = _model(dropout=0.0)
        classifier = TimedClassifier(model, PRESENTATION, [*CRITERION, *extra])
        _fit(classifier, validation=None if validated else [], max_epochs=3)
        weights[validated] = classifier.state_dict()
    for name, value in weights[True].items():
        assert torch.equal(value, weights[False][name]), name


def test_a_target_holds_the_energy_and_logs_its_weight():
    logged, weights = {}, []
    target = EnergyTarget(20.0, "hertz", rate=0.2)
    target.register_forward_hook(lambda *_: weights.append(float(target.weight)))
    for targets in ([], [target]):
        classifier = TimedClassifier(
            _model(dropout=0.0),
            PRESENTATION,
            ["cross_entropy_loss", *targets],
            optimizer_kwargs={"lr": 0.02},
        )
        logged[bool(targets)] = _fit(classifier, max_epochs=12).callback_metrics
    free, held = logged[False], logged[True]
    assert float(free["val_firing_rate"]) > 30
    assert float(held["val_firing_rate"]) < 24
    assert float(held["val_energy/hertz"]) == pytest.approx(float(held["val_firing_rate"]))
    # 12 epochs of 7 steps, each followed by a validation of 3 batches, which moves no weight.
    steps = [weights[10 * epoch + step] for epoch in range(12) for step in range(7)]
    assert max(steps) > 0
    assert float(held["energy/weight"]) == pytest.approx(sum(steps[-7:]) / 7, abs=1e-6)
    assert all(
        w == weights[10 * e + 6] for e in range(12) for w in weights[10 * e + 7 : 10 * e + 10]
    )


def test_varying_presentations_are_those_of_epoch_and_batch():
    varying = VaryingPresentation(base=PRESENTATION, duration=(16.0, 32.0))
    shown = []
    model = _model()
    handle = model.register_forward_pre_hook(lambda _, args: shown.append(args[1]))
    _fit(TimedClassifier(model, varying, CRITERION, seed=7), max_epochs=2)
    handle.remove()
    training = [p for p in shown if p != PRESENTATION]
    expected = [varying.at(7, epoch, batch) for epoch in range(2) for batch in range(7)]
    assert training == [p for p in expected if p != PRESENTATION]
    assert len(set(training)) > 4


def _chunked_gradients(model, images, labels, steps):
    """Truncated back-propagation by hand: the loss of the whole, the graph cut between chunks."""
    inputs, targets = PRESENTATION.present(images), PRESENTATION.targets(labels)
    state, losses, counts = None, [], []
    for start in range(0, 8, steps):
        run = model(inputs[start : start + steps], state=state)
        state = run.state.detach()
        chunk = targets[start : start + steps]
        losses.append(
            nn.functional.cross_entropy(
                run.membrane.flatten(0, 1), chunk.flatten(), ignore_index=-1, reduction="sum"
            )
        )
        counts.append(int((chunk >= 0).sum()))
    (sum(losses) / sum(counts)).backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("steps", [3, 8])
def test_truncation_cuts_the_gradient_between_chunks_and_nothing_else(steps):
    training, _ = data(8, 8)
    model = _model(dropout=0.0)
    expected = _chunked_gradients(model, *training.tensors, steps)
    model.zero_grad()
    before = [p.detach().clone() for p in model.parameters()]
    classifier = TimedClassifier(
        model,
        PRESENTATION,
        ["cross_entropy_loss"],
        optimizer="SGD",
        optimizer_kwargs={"lr": 1.0},
        truncate=2.0 * steps,
    )
    trainer = _fit(classifier, BatchLoader(training, 8), [], max_epochs=1)
    assert trainer.global_step == 1
    for old, new, gradient in zip(before, model.parameters(), expected, strict=True):
        torch.testing.assert_close(old - new, gradient, rtol=1e-4, atol=1e-6)


def test_schedulers_move_and_gradients_are_clipped_under_truncation():
    training, _ = data(8, 8)
    model = _model(dropout=0.0)
    before = [p.detach().clone() for p in model.parameters()]
    classifier = TimedClassifier(
        model,
        PRESENTATION,
        ["cross_entropy_loss"],
        optimizer="SGD",
        optimizer_kwargs={"lr": 1.0},
        scheduler="ExponentialLR",
        scheduler_kwargs={"gamma": 0.5},
        truncate=6.0,
        gradient_clip=1e-3,
    )
    trainer = _fit(classifier, BatchLoader(training, 8), [], max_epochs=1)
    moved = torch.cat([(o - n).flatten() for o, n in zip(before, model.parameters(), strict=True)])
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-3)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.5


def test_mixed_precision_trains():
    model = _model(dropout=0.0)
    classifier = TimedClassifier(model, PRESENTATION, CRITERION)
    trainer = _fit(classifier, validation=[], precision="bf16-mixed")
    assert math.isfinite(float(trainer.callback_metrics["train_loss"]))
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_a_compiled_network_trains_to_the_same_weights():
    training, _ = data(8, 8)
    weights = []
    for backend in (None, "eager"):
        model = _model(dropout=0.0)
        if backend is not None:
            model.net.compile(backend=backend)
        classifier = TimedClassifier(model, dvs.Presentation("1", dt=2.0), CRITERION)
        _fit(classifier, BatchLoader(training, 8), [], max_epochs=1)
        weights.append(list(model.parameters()))
    for plain, compiled in zip(*weights, strict=True):
        torch.testing.assert_close(plain, compiled)


def test_a_norse_network_trains_too():
    torch.manual_seed(0)
    model = dvs.wrap(
        norse.SequentialState(
            nn.Linear(FEATURES, 12), norse.LIFCell(), nn.Linear(12, CLASSES), norse.LICell()
        ),
        dt=1.0,
    )
    classifier = TimedClassifier(model, PRESENTATION.at_dt(1.0), CRITERION)
    trainer = _fit(classifier)
    assert trainer.callback_metrics["val_joules"] > 0


def _raises(error, match, classifier, *loaders):
    with pytest.raises(error, match=match):
        _fit(classifier, *loaders)


def test_a_loss_that_is_not_finite_stops_and_names_layer_and_timestep():
    class Breaks(nn.Module):
        """Is sound in the look and the first timesteps; then its values are infinite."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return x * torch.where(x.amax() > 5, torch.inf, self.scale)

    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Linear(FEATURES, 4),
        Breaks(),
        nn.Linear(4, CLASSES),
        snn.Leaky(0.8, init_hidden=True, output=True, reset_mechanism="none"),
    )
    with torch.no_grad():
        body[0].weight.fill_(1.0)
    images = torch.full((8, FEATURES), 3.0)
    model = dvs.wrap(body, dt=2.0)
    classifier = TimedClassifier(model, PRESENTATION, ["cross_entropy_loss"])
    loader = DataLoader(list(zip(images, torch.zeros(8, dtype=torch.int64), strict=True)), 8)
    _raises(
        TrainingError,
        r"diverged; the output of '1' is not finite at timestep 2",
        classifier,
        loader,
    )


def test_weights_that_are_not_finite_are_named():
    model = _model()
    with torch.no_grad():
        model.net[4].weight[0, 0] = torch.nan
    classifier = TimedClassifier(model, PRESENTATION, CRITERION)
    _raises(TrainingError, r"the parameter of '4\.weight' is not finite", classifier)


def test_data_that_is_nan_does_not_train_a_silent_net():
    """Not in the first batch, whose energy is measured; the loss is finite, since spikes are."""
    model = _model()
    classifier = TimedClassifier(model, PRESENTATION, ["cross_entropy_loss"])
    images = torch.rand(16, FEATURES)
    images[12, 0] = torch.nan
    pairs = list(zip(images, torch.zeros(16, dtype=torch.int64), strict=True))
    _raises(ObservationError, r"'1\.weight' holds NaN", classifier, DataLoader(pairs, 8))


def test_a_loss_that_explodes_is_stopped_with_its_largest_value():
    model = _model()
    with torch.no_grad():
        model.net[4].weight.mul_(1e6)
    classifier = TimedClassifier(model, PRESENTATION, CRITERION)
    _raises(
        TrainingError,
        r"diverged; the (output|membrane) of '.*' reaches .*e\+0.* at timestep",
        classifier,
    )


def test_bad_data_is_told():
    images = torch.rand(8, FEATURES)
    classifier = TimedClassifier(_model(), PRESENTATION, CRITERION)
    beyond = DataLoader(list(zip(images, torch.full((8,), CLASSES), strict=True)), 4)
    _raises(DataError, f"the label {CLASSES}; expected one of the model's", classifier, beyond)
    _raises(DataError, "expected pairs", classifier, DataLoader(images, 4))


def test_a_batch_larger_than_the_data_set_is_the_data_set():
    training, _ = data(5, 5)
    trainer = _fit(
        TimedClassifier(_model(), PRESENTATION, CRITERION), BatchLoader(training, 64), max_epochs=2
    )
    assert trainer.global_step == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"optimizer": "Adamm"}, "Unknown optimizer 'Adamm'. Did you mean 'Adam'?"),
        ({"optimizer_kwargs": {"learning_rate": 1}}, "takes no 'learning_rate'"),
        ({"optimizer_kwargs": {"lr": -1.0}}, "refuses .*Invalid learning rate"),
        ({"scheduler": "CosineLR"}, "Unknown scheduler 'CosineLR'. Did you mean"),
        ({"scheduler": "StepLR", "scheduler_kwargs": {"gama": 1}}, "takes no 'gama'"),
    ],
)
def test_optimizers_and_schedulers_that_cannot_be_are_told(options, told):
    classifier = TimedClassifier(_model(), PRESENTATION, CRITERION, **options)
    with pytest.raises(ConfigError, match=told):
        classifier.configure_optimizers()


def test_optimizers_and_schedulers_may_be_objects_and_functions():
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    _fit(TimedClassifier(model, PRESENTATION, CRITERION, optimizer=optimizer, scheduler=scheduler))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
    other = TimedClassifier(
        model,
        PRESENTATION,
        build_criterion(["cross_entropy_loss"]),
        optimizer=torch.optim.RMSprop,
        scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau,
    )
    _fit(other, max_epochs=1)


def test_a_bare_network_is_refused():
    with pytest.raises(WrapError, match="Wrap it first"):
        TimedClassifier(net(), PRESENTATION, CRITERION)


def test_the_plain_loop_trains_to_a_target_as_well():
    model = _model(dropout=0.0)
    target = EnergyTarget(20.0, "hertz", rate=0.5)
    with build_criterion(["cross_entropy_loss", target], model=model) as criterion:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        fit(model, BatchLoader(data()[0], 8), PRESENTATION, criterion, optimizer, epochs=12)
    result = dvs.simulate(model, DataLoader(data()[1], 20), PRESENTATION)
    assert result.budget.total.firing_rate < 24


def test_a_monitor_tells_each_sign_once_with_figures_of_layers_and_gradients():
    told = []
    model = _model(dropout=0.0)
    with torch.no_grad():
        model.net[1].bias.fill_(5.0)  # its neurons fire at every timestep
    classifier = TimedClassifier(model, PRESENTATION, CRITERION, optimizer_kwargs={"lr": 0.0})
    monitor = EnergyMonitor(tell=told.append)
    _fit(classifier, validation=[], max_epochs=3, callbacks=[monitor])
    names = [sign.name for sign in told]
    assert "saturation of '2'" in names
    assert "rate of '2'" in names
    assert len(set(names)) == len(names)
    assert len(monitor.history) == 3
    last = monitor.history[-1]
    assert last.layers["2"].saturated > 0.9
    assert "5" not in last.layers, "the readout is decoded by its membrane"
    assert set(last.gradients) == {"1", "4"}
    assert last.energy == pytest.approx(0.5, abs=0.01)
    assert last.weighted_energy == pytest.approx(0.3 * last.energy)


def test_a_progress_bar_is_lightnings_own(settings, capsys):
    settings["training"]["epochs"] = 1
    train(parse_config(settings), progress=True)
    assert "Epoch" in capsys.readouterr().out
