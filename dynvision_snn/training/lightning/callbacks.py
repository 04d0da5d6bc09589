"""EnergyMonitor: the signs of a healthy or troubled training, as it goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from dynvision_snn.errors import TrainingError
from dynvision_snn.training.joining import rank
from dynvision_snn.training.lightning.module import TimedClassifier
from dynvision_snn.training.monitor import (
    EpochFigures,
    LayerProbe,
    Limits,
    Sign,
    gradient_norms,
    signs,
)


class EnergyMonitor(Callback):
    """Judges each epoch by `dynvision_snn.training.monitor.signs`.

    The losses are those of the whole epoch; layers and gradients are looked at on its first batch.

    Args:
        limits: from where on something is a warning.
        tell: told of each warning sign, once; by default it is logged as a warning.

    Attributes:
        signs: of the last epoch.
        history: the epochs' figures.
    """

    def __init__(
        self, limits: Limits | None = None, tell: Callable[[Sign], None] | None = None
    ) -> None:
        self._limits = limits or Limits()
        self._tell = tell or _warn
        self._told: set[str] = set()
        self.signs: list[Sign] = []
        self.history: list[EpochFigures] = []
        self._probe, self._open, self._looking = LayerProbe(), ExitStack(), False
        self._seen = EpochFigures(cross_entropy=0.0, weighted_cross_entropy=0.0)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begins to look at the first batch of an epoch."""
        if batch_idx == 0:
            self._open.enter_context(self._probe.on(_classifier(pl_module).model))
            self._looking = True

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the gradients of that batch, before anything clips them."""
        if self._looking:
            norms = gradient_norms(_classifier(pl_module).model)
            self._seen = replace(self._seen, gradients=norms)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes the figures of its layers."""
        if self._looking:
            self._looking = False
            self._open.close()
            layers = self._probe.figures()
            # It is its membrane that is decoded: whether it spikes is nobody's concern.
            layers.pop(_classifier(pl_module).readout or "", None)
            self._seen = replace(self._seen, layers=layers)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Gives the hooks back."""
        self._open.close()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judges the epoch."""
        figures = _classifier(pl_module).epoch_figures()
        seen = replace(figures, layers=self._seen.layers, gradients=self._seen.gradients)
        self.history.append(seen)
        self.signs = signs(self.history, self._limits)
        if rank() == 0:
            for sign in self.signs:
                if not sign.healthy and sign.name not in self._told:
                    self._told.add(sign.name)
                    self._tell(sign)


def _warn(sign: Sign) -> None:
    logging.getLogger(__name__).warning("%s", sign)


def _classifier(pl_module: LightningModule) -> TimedClassifier:
    if not isinstance(pl_module, TimedClassifier):
        raise TrainingError(
            f"EnergyMonitor looks at a TimedClassifier; received a {type(pl_module).__name__}."
        )
    return pl_module
