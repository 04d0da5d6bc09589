"""From validated settings to models, data, criteria and a Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import Dataset, Subset

from dynvision_snn.config import TrainingConfig
from dynvision_snn.data import load_digits
from dynvision_snn.errors import ConfigError, DataError
from dynvision_snn.factories import model_factory, named
from dynvision_snn.model import TimedModel, wrap
from dynvision_snn.training.batches import BatchLoader
from dynvision_snn.training.lightning.callbacks import EnergyMonitor
from dynvision_snn.training.lightning.checkpoints import (
    AtomicCheckpointIO,
    BestCheckpoint,
    ResumeCheckpoint,
    monitored,
)
from dynvision_snn.training.lightning.module import TimedClassifier
from dynvision_snn.training.target import EnergyTarget
from dynvision_snn.varying import VaryingPresentation, draw_generator

CHECKPOINTS = "checkpoints"

# What (seed, ...) is drawn for apart from batches; see VaryingPresentation.at.
_SPLIT = 0x5B117


@dataclass(frozen=True, eq=False)
class DataSets:
    """The three parts of the data; validation is None where nothing is held out."""

    training: Dataset[Any]
    validation: Dataset[Any] | None
    test: Dataset[Any]


def build_model(config: TrainingConfig) -> TimedModel:
    """The wrapped model, its initial weights drawn from the configuration's seed."""
    settings = config.model
    build = model_factory(settings.factory, **settings.kwargs)
    seed_everything(config.seed, workers=True, verbose=False)
    net = build(config.dt)
    model = (
        net
        if isinstance(net, TimedModel)
        else wrap(
            net,
            config.dt,
            readout=settings.readout,
            stepping=settings.stepping,
            time_axis=settings.time_axis,
            engine=settings.engine,
            recompute_every=settings.recompute_every,
            keep_spikes=settings.keep_spikes,
            keep_membranes=settings.keep_membranes,
        )
    )
    if settings.compile is not None:
        model.net.compile(backend=settings.compile)
    return model


def build_data(config: TrainingConfig) -> DataSets:
    """The data, with a validation part held out by the configuration's seed.

    Raises:
        ConfigError: for a factory that does not give a training and a test set.
        DataError: for a validation part without a sample, or nothing left to train with.
    """
    settings = config.data
    make = load_digits if settings.factory == "digits" else named(settings.factory)
    parts = make(**settings.kwargs)
    if not isinstance(parts, Sequence) or len(parts) != 2:
        raise ConfigError(
            f"data.factory {settings.factory!r} gave a {type(parts).__name__}; expected a training "
            "and a test set."
        )
    training, test = parts
    if not settings.validation:
        return DataSets(training, None, test)
    n_held_out = round(settings.validation * len(training))
    if not 0 < n_held_out < len(training):
        raise DataError(
            f"data.validation {settings.validation:g} of {len(training)} training samples leaves "
            f"{n_held_out} to validate and {len(training) - n_held_out} to train with; expected "
            "some of each. Choose another share, or 0 to do without validation."
        )
    order = torch.randperm(len(training), generator=draw_generator(config.seed, _SPLIT)).tolist()
    return DataSets(
        Subset(training, sorted(order[n_held_out:])),
        Subset(training, sorted(order[:n_held_out])),
        test,
    )


def build_classifier(config: TrainingConfig, model: TimedModel) -> TimedClassifier:
    """The model with its presentation, criterion and optimizer."""
    training, scheduler, target = config.training, config.scheduler, config.target
    varying = config.presentation.varying
    presentation = VaryingPresentation(
        base=config.presentation.build(config.dt),
        shuffle=varying.shuffle,
        duration=varying.duration,
        onset_jitter=varying.onset_jitter,
        reaction_time=varying.reaction_time,
        by_sample=varying.by_sample,
    )
    criterion: list[Any] = [loss.model_dump() for loss in config.criterion]
    if target is not None:
        criterion.append(
            EnergyTarget(
                target.limit,
                target.unit,
                target.profile,
                rate=target.rate,
                damping=target.damping,
            )
        )
    return TimedClassifier(
        model,
        presentation if presentation.varies else presentation.base,
        criterion,
        time_axis=config.data.time_axis,
        optimizer=config.optimizer.name,
        optimizer_kwargs=config.optimizer.kwargs,
        scheduler=None if scheduler is None else scheduler.name,
        scheduler_kwargs=None if scheduler is None else scheduler.kwargs,
        scheduler_interval="epoch" if scheduler is None else scheduler.interval,
        scheduler_monitor="train_loss" if scheduler is None else scheduler.monitor,
        profile=config.profile,
        truncate=training.truncate,
        gradient_clip=training.gradient_clip,
        seed=config.seed,
    )


def build_trainer(
    config: TrainingConfig, folder: Path, *, validated: bool, progress: bool
) -> Trainer:
    """Lightning's Trainer: loggers, checkpoints, signs and early stopping.

    Args:
        config: the settings.
        folder: of the run.
        validated: whether there is a validation set.
        progress: whether a progress bar is shown.
    """
    training = config.training
    callbacks: list[Callback] = [
        EnergyMonitor(),
        BestCheckpoint(
            folder / CHECKPOINTS,
            training.monitor or "val_objective",
            "max" if training.monitor is None or "accuracy" in training.monitor else "min",
            training.keep,
        ),
    ]
    if training.early_stopping is not None:
        stopping = training.early_stopping
        monitor, mode = monitored(
            stopping.monitor, stopping.mode, validated=validated, validate_every=1, save_every=1
        )
        callbacks.append(
            EarlyStopping(
                monitor,
                mode=mode,
                patience=stopping.patience,
                min_delta=stopping.min_delta,
                check_on_train_epoch_end=True,
            )
        )
    if progress:
        callbacks.append(RichProgressBar())
    # Last: what it writes then holds what the others have decided.
    callbacks.append(ResumeCheckpoint(folder / CHECKPOINTS, training.checkpoint_every))
    several = training.processes * training.nodes > 1
    return Trainer(
        max_epochs=training.epochs,
        accelerator=training.accelerator,
        devices=training.processes,
        num_nodes=training.nodes,
        strategy=DDPStrategy(broadcast_buffers=False) if several else "auto",
        precision=training.precision,
        gradient_clip_val=training.gradient_clip if training.truncate is None else None,
        accumulate_grad_batches=training.accumulate,
        check_val_every_n_epoch=training.validate_every,
        log_every_n_steps=training.log_every,
        logger=[
            CSVLogger(folder, name="csv"),
            TensorBoardLogger(folder, name="tensorboard"),
        ],
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=progress,
        enable_model_summary=False,
        enable_checkpointing=True,
    )


def build_loader(
    config: TrainingConfig, dataset: Dataset[Any], trainer: Trainer, *, training: bool
) -> BatchLoader:
    """Batches of this process; the training's are shuffled."""
    return BatchLoader(
        dataset,
        config.training.batch_size,
        seed=config.seed if training else None,
        rank=trainer.global_rank,
        world_size=trainer.world_size,
        drop_small=training,
        n_workers=config.data.n_workers,
    )
