"""A whole training from a configuration: run, stop, resume, and what it came to.

A run's folder holds ``config.yaml`` (every setting, defaults included), ``run.json`` (versions,
seed, git state), ``checkpoints/``, ``csv/`` and ``tensorboard/``, and when it is finished
``result.json``.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.data import DataLoader

from dynvision_snn.config import TrainingConfig, dump_yaml, load_config
from dynvision_snn.decision import DecisionRule
from dynvision_snn.errors import TrainingError
from dynvision_snn.report.files import check_free, write_text
from dynvision_snn.simulation import Simulation, simulate
from dynvision_snn.training.joining import ending_processes
from dynvision_snn.training.lightning.building import (
    CHECKPOINTS,
    DataSets,
    build_classifier,
    build_data,
    build_loader,
    build_model,
    build_trainer,
)
from dynvision_snn.training.lightning.checkpoints import LAST, BestCheckpoint, read_checkpoint
from dynvision_snn.training.lightning.module import TimedClassifier
from dynvision_snn.training.provenance import provenance
from dynvision_snn.training.state import check_same_model
from dynvision_snn.training.target import SYMBOLS, Unit
from dynvision_snn.training.validation import TOLERANCE

CONFIG, RUN, RESULT = "config.yaml", "run.json", "result.json"

# What may differ in a run that goes on: none of it changes a step that was taken.
_MAY_DIFFER = (("out",), ("sweep",), ("training", "epochs"), ("training", "log_every"))


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a finished training came to, on the test set.

    Attributes:
        accuracy: over supervised timesteps.
        firing_rate, synops, joules: of the best model; Hz, and per sample.
        energy: in the target's unit; None without a target.
        limit: the target's; None likewise.
        unit: likewise.
        checkpoint: of the best model, relative to the run's folder.
        epochs: how many were trained.
        asked_epochs: how many were asked for; early stopping leaves some out.
    """

    accuracy: float
    firing_rate: float
    synops: float
    joules: float
    profile: str
    energy: float | None
    limit: float | None
    unit: Unit | None
    checkpoint: str
    epochs: int
    asked_epochs: int

    @property
    def met(self) -> bool | None:
        """Whether the energy is within the limit, up to 5 %; None without a limit."""
        if self.energy is None or self.limit is None:
            return None
        return self.energy <= self.limit * (1 + TOLERANCE)

    def __str__(self) -> str:
        lines = [
            f"accuracy {self.accuracy:.1%} (test set, supervised timesteps), "
            f"{self.firing_rate:.4g} Hz, {self.synops:.6g} SynOps, {self.joules:.4g} J per sample "
            f"({self.profile})"
        ]
        if self.energy is not None and self.limit is not None and self.unit is not None:
            share = self.energy / self.limit
            symbol = SYMBOLS[self.unit]
            verdict = (
                f"the limit of {self.limit:g} {symbol} is met"
                if self.met
                else f"THE LIMIT OF {self.limit:g} {symbol} IS NOT MET; the model nearest to it is "
                "kept. Train for more epochs, or raise target.rate or the limit"
            )
            lines.append(f"energy {self.energy:.4g} {symbol}, {share:.0%} of the limit: {verdict}")
        lines.append(f"best model: {self.checkpoint}, of {self.epochs} epochs")
        return "\n".join(lines)


def train(
    config: TrainingConfig, *, resume: bool = False, progress: bool | None = None
) -> TrainingResult:
    """Trains as a configuration says, and writes the run to its folder.

    Args:
        config: the settings.
        resume: go on with the run in that folder, if there is one; a finished one is only read.
        progress: whether a progress bar is shown; by default on a terminal.

    Raises:
        OutputError: if the folder exists and `resume` is not set, or cannot be written.
        TrainingError: if the training diverges, the limit is out of reach, or the run in the folder
            is of another configuration.
        ConfigError, DataError, WrapError, LossError: for settings that cannot be.
    """
    folder = Path(config.out)
    going_on = resume and (folder / CONFIG).is_file()
    if going_on and (finished := finished_result(config)):
        return finished
    model = build_model(config)
    classifier, data = build_classifier(config, model), build_data(config)
    bar = sys.stderr.isatty() if progress is None else progress
    trainer = build_trainer(config, folder, validated=data.validation is not None, progress=bar)
    if trainer.is_global_zero and not going_on:
        _begin(config, folder)
    with ending_processes():
        return _run(config, folder, trainer, classifier, data)


def _begin(config: TrainingConfig, folder: Path) -> None:
    check_free(folder)
    write_text(folder / CONFIG, dump_yaml(config.resolved()))
    write_text(folder / RUN, json.dumps(provenance(config.seed), indent=1))


def _run(
    config: TrainingConfig,
    folder: Path,
    trainer: Trainer,
    classifier: TimedClassifier,
    data: DataSets,
) -> TrainingResult:
    last = folder / CHECKPOINTS / LAST
    training = build_loader(config, data.training, trainer, training=True)
    validation = (
        None
        if data.validation is None
        else build_loader(config, data.validation, trainer, training=False)
    )
    trainer.fit(
        classifier,
        training,
        validation,
        ckpt_path=str(last) if last.is_file() else None,
        weights_only=True,
    )
    if trainer.interrupted:
        raise TrainingError(f"stopped; go on with --resume from {last}.")
    best = next(c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint))
    checkpoint = Path(best.best_model_path)
    classifier.load_state_dict(read_checkpoint(checkpoint)["state_dict"])
    test = build_loader(config, data.test, trainer, training=False)
    (measured,) = trainer.test(classifier, test, verbose=False)
    result = _result(config, classifier, measured, str(checkpoint.relative_to(folder.absolute())))
    if trainer.is_global_zero:
        write_text(folder / RESULT, json.dumps(_plain(result), indent=1), force=True)
    return result


def _result(
    config: TrainingConfig,
    classifier: TimedClassifier,
    measured: Mapping[str, float],
    checkpoint: str,
) -> TrainingResult:
    target = classifier.target
    return TrainingResult(
        accuracy=measured["test_accuracy"],
        firing_rate=measured["test_firing_rate"],
        synops=measured["test_synops"],
        joules=measured["test_joules"],
        profile=config.profile,
        energy=None if target is None else measured[f"test_energy/{target.unit}"],
        limit=None if target is None else target.limit,
        unit=None if target is None else target.unit,
        checkpoint=checkpoint,
        epochs=classifier.trainer.current_epoch,
        asked_epochs=config.training.epochs,
    )


def quieten() -> None:
    """Keeps Lightning from telling of devices and offers; what a run has to say it says itself."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")


def is_first_process() -> bool:
    """Whether this is the process that speaks for all of a distributed run."""
    return bool(cast(Any, rank_zero_only).rank == 0)


def finished_result(config: TrainingConfig) -> TrainingResult | None:
    """The result of the run in a configuration's folder; None if there is none, or not yet.

    Raises:
        TrainingError: if the run there is of another configuration.
    """
    folder = Path(config.out)
    if not (folder / CONFIG).is_file():
        return None
    _check_same_run(config, folder)
    result = read_result(folder)
    enough = result is not None and result.asked_epochs >= config.training.epochs
    return result if enough else None


def read_result(folder: str | Path) -> TrainingResult | None:
    """The result of the run in a folder; None if it is not finished."""
    path = Path(folder) / RESULT
    if not path.is_file():
        return None
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for name in _NUMBERS:
        values[name] = math.nan if values[name] is None else values[name]
    return TrainingResult(**values)


_NUMBERS = ("accuracy", "firing_rate", "synops", "joules")


def _plain(result: TrainingResult) -> dict[str, Any]:
    """JSON-safe: NaN becomes None."""
    return {k: None if v != v else v for k, v in vars(result).items()}


def simulate_checkpoint(
    config: TrainingConfig,
    checkpoint: str | Path,
    *,
    every: float | None = None,
    rules: Mapping[str, DecisionRule] = MappingProxyType({}),
    progress: bool | None = None,
) -> Simulation:
    """A trained model on the test set.

    Args:
        config: the settings it was trained with.
        checkpoint: one that `train` has written.
        every: runs in chunks of this many ms, as in `simulate`.
        rules: decision rules by name, as in `simulate`.
        progress: whether a progress bar is shown.

    Raises:
        TrainingError: if the checkpoint is missing, damaged, or of another model.
    """
    state = read_checkpoint(checkpoint)["state_dict"]
    model = build_model(config)
    prefix = "model."
    weights = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    check_same_model(weights, model.state_dict(), str(checkpoint))
    model.load_state_dict(weights)
    test = build_data(config).test
    loader: DataLoader[Any] = DataLoader(test, config.training.batch_size)
    return simulate(
        model,
        loader,
        config.presentation.build(config.dt),
        time_axis=config.data.time_axis,
        every=every,
        rules=rules,
        progress=progress,
    )


def _check_same_run(config: TrainingConfig, folder: Path) -> None:
    """Refuses to go on with another configuration, naming what differs."""
    theirs, ours = (
        _flat(load_config(folder / CONFIG).resolved()),
        _flat(config.resolved()),
    )
    differing = [
        f"{'.'.join(path)} is {theirs.get(path)!r} there and {ours.get(path)!r} here"
        for path in {**theirs, **ours}
        if theirs.get(path) != ours.get(path)
        and not any(path[: len(free)] == free for free in _MAY_DIFFER)
    ]
    if differing:
        raise TrainingError(
            f"the run in {folder} is of another configuration: {'; '.join(differing)}. Go on with "
            "its own (config.yaml), or choose another out."
        )


def _flat(settings: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if isinstance(settings, dict) and settings:
        return {
            key: value
            for name, inner in settings.items()
            for key, value in _flat(inner, (*path, str(name))).items()
        }
    return {path: settings}
