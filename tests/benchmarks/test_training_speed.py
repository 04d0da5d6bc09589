"""What Lightning adds to a training step; run with ``pytest tests/benchmarks --benchmark-only``.

The digits model, batch 128, energy loss on. The plain loop and Lightning take turns, epoch by
epoch, so that a busy machine disturbs both alike; an epoch's processor time is divided by its
steps. What a validation costs is no step's. Nothing passes or fails on time; the ratio is in
pytest-benchmark's ``extra_info``.
"""

from __future__ import annotations

import logging
import statistics
import time

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import TensorDataset

import dynvision_snn as dvs
from dynvision_snn.data import load_digits
from dynvision_snn.demo import DemoSettings, snntorch_model
from dynvision_snn.losses import build_criterion
from dynvision_snn.training import EnergyMonitor, TimedClassifier
from dynvision_snn.training.batches import BatchLoader

BATCH, STEPS, ROUNDS = 128, 40, 5
PRESENTATION = DemoSettings().presentation()
CRITERION = [{"name": "cross_entropy_loss"}, {"name": "energy_loss", "weight": 0.05}]


class Stopwatch(Callback):
    """Processor time from the first batch of an epoch to the end of its last, by epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        self._begin = time.process_time()

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.seconds.append(time.process_time() - self._begin)


def _data() -> TensorDataset:
    training, _ = load_digits()
    images, labels = (tensor.repeat(4, *[1] * (tensor.ndim - 1)) for tensor in training.tensors)
    return TensorDataset(images[: BATCH * STEPS], labels[: BATCH * STEPS])


def _model() -> dvs.TimedModel:
    torch.manual_seed(0)
    return dvs.wrap(snntorch_model(2.0), dt=2.0)


def _plain(model, criterion, optimizer, data) -> float:
    begin = time.process_time()
    for images, labels in BatchLoader(data, BATCH, seed=0):
        loss = criterion(model(images, PRESENTATION).membrane, PRESENTATION.targets(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.process_time() - begin


@pytest.mark.parametrize("monitored", [False, True], ids=["", "with EnergyMonitor"])
def test_a_lightning_step_against_the_plain_loop(benchmark, monitored, capsys):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    data = _data()
    plain_model = _model()
    criterion = build_criterion(CRITERION, model=plain_model)
    optimizer = torch.optim.Adam(plain_model.parameters(), lr=1e-3)
    classifier = TimedClassifier(_model(), PRESENTATION, CRITERION)
    plain, engine = [], []

    def rounds() -> None:
        for _ in range(ROUNDS + 1):
            plain.append(_plain(plain_model, criterion, optimizer, data))
            watch = Stopwatch()
            trainer = Trainer(
                max_epochs=1,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                callbacks=[*([EnergyMonitor()] if monitored else []), watch],
            )
            trainer.fit(classifier, BatchLoader(data, BATCH, seed=0))
            engine.extend(watch.seconds)

    benchmark.pedantic(rounds, rounds=1)
    ratio = statistics.median(e / p for e, p in zip(engine[1:], plain[1:], strict=True))
    found = {
        "plain, ms a step": round(1e3 * statistics.median(plain[1:]) / STEPS, 2),
        "Lightning, ms a step": round(1e3 * statistics.median(engine[1:]) / STEPS, 2),
        "ratio": round(ratio, 3),
    }
    benchmark.extra_info.update(found)
    with capsys.disabled():
        print(f"\n{found}")
