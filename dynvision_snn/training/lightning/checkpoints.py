"""Checkpoints that are whole or not there, loaded without running code, and found again."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from dynvision_snn.errors import TrainingError
from dynvision_snn.report.files import writing_file

LAST = "last.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, flushes it to the disk, and renames it.

    Whatever ends the process on the way, a kill, a full disk, a power cut, the checkpoint before
    stays whole. (Lightning's own way writes into the temporary folder and moves it from there; on
    another file system that is a copy, which can stop half way.)
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Writes a checkpoint, whole or not at all.

        Raises:
            OutputError: if it cannot be written, as on a full disk.
        """
        # Serialised in memory first: torch reports a full disk as an error of its own format.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with writing_file(Path(path), force=True) as hidden, hidden.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint; no code in it is run."""
        return read_checkpoint(path, map_location)


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint's plain values and tensors, read with ``weights_only=True``.

    Raises:
        TrainingError: if it is not there, damaged, or holds more than that.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(file.name for file in path.parent.glob("*.ckpt"))
        there = f"There are: {', '.join(near)}." if near else "There is none in that folder."
        raise TrainingError(f"there is no checkpoint {path}. {there}")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise TrainingError(
            f"{path} is no checkpoint that can be read safely: {error}. A checkpoint of this "
            "package holds tensors and plain values only; take one from before."
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise TrainingError(
            f"{path} holds no training; expected a checkpoint that dynvision-snn train has written."
        )
    return checkpoint


class ResumeCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``, from which a training goes on exactly as if it had not stopped.

    Written at the end of every epoch, after its validation, and every so many steps within it.

    Args:
        folder: where it lies.
        every_n_steps: steps between two; None for the ends of epochs alone.
    """

    def __init__(self, folder: str | Path, every_n_steps: int | None = None) -> None:
        self.path = Path(folder) / LAST
        self._every = every_n_steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Within an epoch; its last batch is left to the epoch's end."""
        is_last = batch_idx + 1 == trainer.num_training_batches
        if self._every and (batch_idx + 1) % self._every == 0 and not is_last:
            trainer.save_checkpoint(self.path, weights_only=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """At the end of an epoch, when all else of it is done."""
        trainer.save_checkpoint(self.path, weights_only=False)


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best models; falls back to ``train_loss`` where its metric would not be there.

    Validation that runs less often than checkpoints are written, or not at all, leaves a metric of
    it missing or old; then the loss of the training decides, and says so.

    Args:
        folder: where they lie.
        monitor: what is compared.
        mode: whether ``"max"`` or ``"min"`` is better.
        keep: how many.
    """

    def __init__(
        self,
        folder: str | Path,
        monitor: str = "val_objective",
        mode: str = "max",
        keep: int = 1,
    ) -> None:
        super().__init__(
            dirpath=folder,
            filename="best-{epoch}",
            monitor=monitor,
            mode=mode,
            save_top_k=keep,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Chooses what is compared."""
        every = self._every_n_epochs
        monitor, mode = monitored(
            str(self.monitor),
            self.mode,
            validated=trainer.enable_validation and stage == "fit",
            validate_every=trainer.check_val_every_n_epoch or 1,
            save_every=every or 1,
        )
        if stage == "fit" and monitor != self.monitor:
            rank_zero_info(
                f"checkpoints are compared by {monitor!r}, since validation runs less often than "
                f"they are written, so that {self.monitor!r} would be missing or old."
            )
            self.monitor, self.mode = monitor, mode
            self.kth_value = torch.tensor(float("inf"))
        super().setup(trainer, pl_module, stage)


def monitored(
    monitor: str, mode: str, *, validated: bool, validate_every: int, save_every: int
) -> tuple[str, str]:
    """What checkpoints are compared by, and whether ``"min"`` or ``"max"`` is better.

    Args:
        monitor: the metric wanted.
        mode: whether ``"min"`` or ``"max"`` of it is better.
        validated: whether there is a validation at all.
        validate_every: epochs between validations.
        save_every: epochs between checkpoints.

    >>> monitored("val_loss", "min", validated=True, validate_every=5, save_every=1)
    ('train_loss', 'min')
    >>> monitored("val_loss", "min", validated=True, validate_every=1, save_every=1)
    ('val_loss', 'min')
    """
    if monitor.startswith("val") and (not validated or save_every % validate_every):
        return "train_loss", "min"
    return monitor, mode
