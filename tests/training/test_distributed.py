"""Two processes train as one on the joined batch: losses, gradients, weights, budgets, metrics."""

from __future__ import annotations

import copy
import csv
import math
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from nets import SETTINGS, net
from two_processes import parts_of_a_batch, step

import dynvision_snn as dvs
from dynvision_snn.config import dump_yaml, parse_config
from dynvision_snn.errors import DataError, TrainingError
from dynvision_snn.training import TimedClassifier
from dynvision_snn.training.batches import BatchLoader, EpochOrder, GlobalBatches
from dynvision_snn.training.lightning import read_checkpoint, train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same training in two processes and in one, and one step of both."""
    folder = tmp_path_factory.mktemp("distributed")
    settings = copy.deepcopy(SETTINGS)
    # 54 samples, 11 held out: five batches of 8, and one of 3. 21 to test with.
    settings["data"] |= {"kwargs": {"n_training": 54, "n_test": 21, "unlabelled": True}}
    settings["model"] = {"factory": "nets:net", "kwargs": {"dropout": 0.0}}
    settings["optimizer"] = {"name": "SGD", "kwargs": {"lr": 0.1}}
    settings["target"] = {"limit": 50.0, "unit": "hertz"}
    settings["criterion"].append(
        {"name": "energy_loss", "weight": 0.001, "kwargs": {"reduction": "sum"}, "label": "sum"}
    )
    settings["training"]["epochs"] = 2
    # Shares of the last batch differ in their longest sample.
    settings["presentation"]["varying"] = {"onset_jitter": 12.0, "by_sample": True}
    two = copy.deepcopy(settings) | {"out": str(folder / "two")}
    two["training"]["processes"] = 2
    (folder / "config.yaml").write_text(dump_yaml(two))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = Path(__file__).parent / "two_processes.py"
    shown = subprocess.run(
        [*command, str(script), str(folder / "config.yaml"), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    for name, truncate in (("one", None), ("one in chunks", 4.0)):
        settings["training"]["truncate"] = truncate
        train(parse_config(settings | {"out": str(folder / name)}), progress=False)
    return folder, torch.load(folder / "found.pt", weights_only=True)


def test_one_step_of_two_processes_is_one_of_the_joined_batch(runs):
    _, found = runs
    ours, theirs = (
        step(lambda: net(dropout=0.0), *parts_of_a_batch(), parallel=False),
        found["step"],
    )
    assert float(theirs["total"]) == pytest.approx(float(ours["total"]), rel=1e-6)
    assert float(theirs["weight"]) == pytest.approx(float(ours["weight"]), rel=1e-6)
    for label, value in ours["components"].items():
        assert float(theirs["components"][label]) == pytest.approx(float(value), rel=1e-6)
    for one, other in zip(ours["gradients"], theirs["gradients"], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-7)
    assert _layers(theirs["budget"]) == _layers(ours["budget"])


def _layers(budget):
    """The counts, but for those that are sums of rounded magnitudes."""
    layers = [dict(layer) for layer in budget["layers"]]
    for layer in layers:
        layer["series"] = {k: v for k, v in layer["series"].items() if k != "synops_weighted"}
    return layers


def test_a_mean_of_the_parts_means_would_be_another_loss():
    """What the weighing is for: the parts of this batch have 3 and 1 supervised samples."""
    images, labels = parts_of_a_batch()
    assert [(labels[:3] >= 0).sum(), (labels[3:] >= 0).sum()] == [3, 1]
    of = {
        name: float(
            step(lambda: net(dropout=0.0), images[part], labels[part], parallel=False)[
                "components"
            ]["CrossEntropyLoss"]
        )
        for name, part in {"all": slice(0, 7), "first": slice(0, 3), "rest": slice(3, 7)}.items()
    }
    assert (3 * of["first"] + of["rest"]) / 4 == pytest.approx(of["all"], rel=1e-6)
    assert (of["first"] + of["rest"]) / 2 != pytest.approx(of["all"], rel=1e-3)


@pytest.mark.parametrize("how", ["", " in chunks"])
def test_two_processes_train_to_the_weights_of_one(runs, how):
    folder, _ = runs
    one, two = (
        read_checkpoint(folder / f"{name}{how}" / "checkpoints" / "last.ckpt")
        for name in ("one", "two")
    )
    assert one["global_step"] == two["global_step"] == 12
    for key, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][key], value, rtol=1e-4, atol=1e-6)


def _metrics(folder):
    with (folder / "csv" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {
        name: [float(row[name]) for row in rows if row[name]]
        for name in rows[0]
        if not name.endswith("_step")
    }


@pytest.mark.parametrize("how", ["", " in chunks"])
def test_two_processes_measure_what_one_does(runs, how):
    """Validation and test count every sample once, though 11 and 21 do not divide by two."""
    folder, _ = runs
    one, two = (_metrics(folder / f"{name}{how}") for name in ("one", "two"))
    assert {"train_loss", "val_loss", "val_joules", "val_accuracy", "test_accuracy"} <= one.keys()
    assert one.keys() == two.keys()
    for name, values in one.items():
        assert len(values) == len(two[name]), name
        for value, other in zip(values, two[name], strict=True):
            both_nan = math.isnan(value) and math.isnan(other)
            assert both_nan or other == pytest.approx(value, rel=1e-4), name


def test_membranes_are_not_broadcast(runs):
    assert runs[1]["broadcast"] == [False, False]


def test_asking_for_broadcast_is_refused(settings):
    model = dvs.wrap(net(), dt=2.0)
    classifier = TimedClassifier(model, dvs.Presentation("01", dt=2.0), ["cross_entropy_loss"])
    classifier.trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=DDPStrategy(broadcast_buffers=True),
        logger=False,
        enable_checkpointing=False,
    )
    with pytest.raises(TrainingError, match="overwrite every process's membranes"):
        classifier.setup("fit")


@pytest.mark.parametrize("n_samples", [1, 7, 16, 33])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_each_global_batch_without_overlap(n_samples, world_size):
    whole = list(GlobalBatches(EpochOrder(n_samples, 4), 6))
    shares = [
        list(GlobalBatches(EpochOrder(n_samples, 4), 6, rank, world_size))
        for rank in range(world_size)
    ]
    for number, batch in enumerate(whole):
        parts = [share[number] for share in shares if number < len(share)]
        assert sorted(chain(*parts)) == sorted(batch)
    assert sorted(chain(*whole)) == list(range(n_samples))


def test_in_training_no_process_is_left_without_a_sample():
    for rank in range(3):
        batches = GlobalBatches(EpochOrder(14, 0), 6, rank, 3, drop_small=True)
        assert len(batches) == len(list(batches)) == 2
    with pytest.raises(DataError, match="cannot be shared by 3"):
        GlobalBatches(EpochOrder(14, 0), 2, 0, 3)


def test_epochs_differ_and_come_again():
    def epoch(number):
        loader = BatchLoader(torch.arange(20), 6, seed=1)
        loader.order.set_epoch(number)
        return torch.cat(list(loader)).tolist()

    assert epoch(0) == epoch(0) != epoch(1)
    assert sorted(epoch(1)) == list(range(20))


@pytest.mark.parametrize("stopped_after", [0, 1, 3, 4])
def test_a_loader_goes_on_where_another_stopped(stopped_after):
    whole, first, second = (BatchLoader(torch.arange(20), 6, seed=1) for _ in range(3))
    for loader in (whole, first):
        loader.order.set_epoch(2)
    batches = [batch.tolist() for batch in whole]
    iterator = iter(first)
    for _ in range(stopped_after):
        next(iterator)
    second.load_state_dict(first.state_dict())
    second.order.set_epoch(2)
    assert [batch.tolist() for batch in second] == batches[stopped_after:]
    second.order.set_epoch(3)
    assert len(list(second)) == len(second) == 4


def test_data_without_samples_or_length_is_refused():
    with pytest.raises(DataError, match="empty"):
        BatchLoader(torch.arange(0), 6)
    with pytest.raises(DataError, match="without a length"):
        BatchLoader((i for i in range(3)), 6)
