"""TimedClassifier: a wrapped model, its presentation and its criterion as a LightningModule.

One class, whose hooks Lightning calls; what they document makes the file long.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from dynvision_snn.energy import EnergyMeter, HardwareProfile, resolve_profile
from dynvision_snn.errors import DataError, TrainingError, WrapError
from dynvision_snn.losses import BaseLoss, Criterion, CrossEntropyLoss, EnergyLoss, build_criterion
from dynvision_snn.model import TimedModel
from dynvision_snn.presentation import Presentation
from dynvision_snn.timing import nearest_steps
from dynvision_snn.training.diagnosis import find_trouble
from dynvision_snn.training.joining import Joined, joined_budget, joined_loss, summed
from dynvision_snn.training.lightning.truncation import back_propagated
from dynvision_snn.training.monitor import EpochFigures
from dynvision_snn.training.optimizing import (
    OptimizerLike,
    SchedulerLike,
    build_optimizer,
    build_scheduler,
)
from dynvision_snn.training.state import TrainingState, check_same_model
from dynvision_snn.training.sums import PHASES, phase_hits
from dynvision_snn.training.target import EnergyTarget
from dynvision_snn.training.validation import Validation, energy_target, firing_rate, logged_joules
from dynvision_snn.varying import VaryingPresentation

DIVERGED = 1e4
"""A loss from here on has diverged: chance is log(classes), 2.3 of ten."""


class TimedClassifier(LightningModule):
    """Trains a wrapped model in biological time, with Lightning as its engine.

    Batches are pairs (images ``[B, *features]``, labels ``[B]``), as everywhere in this package.

    Logged at the end of every epoch: ``train_loss``; each loss by its label, raw and as weighted,
    ``loss/CrossEntropyLoss`` and ``loss/CrossEntropyLoss_weighted``; ``train_accuracy`` over
    supervised timesteps, ``train_accuracy/reaction`` and ``train_accuracy/null``;
    ``train_firing_rate`` (Hz) and ``train_joules`` per sample, measured on the epoch's first batch.
    The losses also at every logged step, with ``_step`` after the name. Of a validation, all of its
    samples counting: ``val_loss``, ``val_loss/...``, ``val_accuracy...``, ``val_firing_rate``,
    ``val_synops``, ``val_joules`` and ``val_objective``. With an `EnergyTarget`:
    ``energy/<unit>``, ``energy/weight`` and ``val_energy/<unit>``.

    ``val_objective`` is what the best checkpoint is best in, higher is better: the geometric mean
    of the probability of the right class, ``exp(-cross-entropy)``; but of a model above its energy
    limit, minus the relative violation.

    Several processes train as one on the joined batch: see `dynvision_snn.training.joining`.

    Args:
        model: the wrapped model.
        presentation: the schedule; a `VaryingPresentation` varies in training, and validates by its
            base.
        criterion: as `build_criterion` takes it, `EnergyTarget` instances included; or a
            `Criterion` whose hooks are on `model`.
        optimizer: a name in ``torch.optim``, a class, a function of parameters, or an optimizer.
        optimizer_kwargs: its arguments.
        scheduler: likewise, of ``torch.optim.lr_scheduler``; None for a constant learning rate.
        scheduler_kwargs: its arguments.
        scheduler_interval: whether the scheduler moves at every ``"epoch"`` or ``"step"``.
        scheduler_monitor: what a ReduceLROnPlateau looks at.
        profile: hardware profile that joules are logged for.
        truncate: chunks of truncated back-propagation through time, in ms. The gradient stops
            between chunks, and only one chunk's graph is held. Gradients are then clipped by
            `gradient_clip` and not by the Trainer, which does not clip by hand.
        gradient_clip: largest norm of the gradient, with `truncate`.
        seed: of the presentations' draws.

    Raises:
        WrapError: if the model is not wrapped.
        LossError, ConfigError, EnergyError: for a criterion, optimizer, scheduler or profile that
            cannot be.
        TrainingError: for an energy limit that a chunk cannot tell.
    """

    def __init__(
        self,
        model: TimedModel,
        presentation: Presentation | VaryingPresentation,
        criterion: Criterion | Sequence[Any],
        *,
        optimizer: OptimizerLike = "Adam",
        optimizer_kwargs: Mapping[str, Any] | None = None,
        scheduler: SchedulerLike | None = None,
        scheduler_kwargs: Mapping[str, Any] | None = None,
        scheduler_interval: str = "epoch",
        scheduler_monitor: str = "train_loss",
        profile: str | HardwareProfile | Mapping[str, Any] = "45nm-fp32",
        truncate: float | None = None,
        gradient_clip: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(model, TimedModel):
            raise WrapError(
                f"TimedClassifier takes a wrapped model; received a {type(model).__name__}. Wrap "
                "it first: dvs.wrap(net, dt=...)."
            )
        self.model = model
        self.varying = (
            presentation
            if isinstance(presentation, VaryingPresentation)
            else VaryingPresentation(base=presentation)
        )
        self.criterion = (
            criterion
            if isinstance(criterion, Criterion)
            else build_criterion(criterion, model=model)
        )
        self.profile = resolve_profile(profile)
        self.seed = seed
        self._optimizer = (optimizer, dict(optimizer_kwargs or {}))
        self._scheduler = (scheduler, dict(scheduler_kwargs or {}))
        self._scheduler_settings = {"interval": scheduler_interval, "monitor": scheduler_monitor}
        self._chunk = None if truncate is None else max(1, nearest_steps(truncate, model.dt))
        self._gradient_clip = gradient_clip
        self.automatic_optimization = self._chunk is None
        if self._chunk and self.target is not None and self.target.unit in ("synops", "joules"):
            raise TrainingError(
                f"a limit in {self.target.unit} is of a whole run, of which truncated "
                "back-propagation sees a chunk at a time; limit 'hertz' or 'activity' instead."
            )
        self._state = TrainingState()
        self._validation: Validation | None = None

    # -- what it is made of ------------------------------------------------------------------------

    @property
    def presentation(self) -> Presentation:
        """The schedule that is validated by."""
        return self.varying.base

    @property
    def target(self) -> EnergyTarget | None:
        """The criterion's energy target, if it has one."""
        return energy_target(self.criterion)

    @property
    def readout(self) -> str | None:
        """The layer that was decoded last; None where the model's output is, or before a run."""
        return self._state.readout

    def presentation_at(self, epoch: int, batch: int) -> Any:
        """The schedule of one training batch."""
        if not self.varying.varies:
            return self.varying.base
        return self.varying.at(self.seed, epoch, batch)

    def configure_optimizers(self) -> Any:
        """The optimizer, and the scheduler in Lightning's form."""
        what, kwargs = self._optimizer
        optimizer = build_optimizer(what, self.model.parameters(), kwargs)
        schedule, schedule_kwargs = self._scheduler
        if schedule is None:
            return optimizer
        scheduler = build_scheduler(schedule, optimizer, schedule_kwargs)
        settings: dict[str, Any] = {"scheduler": scheduler, **self._scheduler_settings}
        if isinstance(scheduler, ReduceLROnPlateau):
            # Lightning would move it after the epoch's checkpoint is written, and not at all in a
            # resumed epoch. It is moved in `on_train_epoch_end`, and here as good as never.
            settings |= {"interval": "epoch", "frequency": sys.maxsize}
            self._scheduler_settings["interval"] = "epoch"
        return {"optimizer": optimizer, "lr_scheduler": settings}

    def setup(self, stage: str) -> None:
        """Keeps DistributedDataParallel from overwriting membranes with another process's."""
        strategy = self.trainer.strategy
        if not isinstance(strategy, DDPStrategy):
            return
        # Lightning keeps what it hands to DistributedDataParallel here, and nowhere else.
        if strategy._ddp_kwargs.setdefault("broadcast_buffers", False):
            raise TrainingError(
                "broadcast_buffers=True would overwrite every process's membranes with those of "
                "the first. Leave it out, or pass DDPStrategy(broadcast_buffers=False); use "
                "Trainer(sync_batchnorm=True) for batch normalisation."
            )

    # -- training ----------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """A resumed run draws the random numbers that it would have drawn."""
        self._state.restore_random_numbers()

    def on_train_epoch_start(self) -> None:
        """A new epoch's sums begin at zero."""
        self._state.begin_epoch()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """One batch: one run, one loss; with truncation also the optimizer's step."""
        images, labels = _pair(batch)
        presentation = self.presentation_at(self.current_epoch, batch_idx)
        targets = presentation.targets(labels)
        if self.target is not None and not self._state.floor_checked:
            self._state.floor_checked = True
            self.target.check_reachable(self.model, images, presentation)
        if self._chunk is not None:
            chunks = back_propagated(self, images, targets, presentation, self._chunk)
            membrane, joined, self._state.readout = chunks
            self._step_by_hand()
        else:
            with self._metered_once():
                run = self.model(images, presentation)
            membrane, self._state.readout = run.membrane, run.readout
            joined = joined_loss(self.criterion, membrane, targets)
        self._check_converging(joined.total, images, presentation)
        self._note(joined, phase_hits(membrane, labels, presentation), presentation)
        return joined.loss if self._chunk is None else None

    @contextmanager
    def _metered_once(self) -> Iterator[None]:
        """Measures the energy of one batch in each epoch."""
        if self._state.meter is not None:
            yield
            return
        with EnergyMeter(self.model) as meter:
            yield
        self._state.meter = meter

    def _step_by_hand(self) -> None:
        """Clips the gradient, and moves the optimizer and a scheduler that moves with it."""
        optimizer = cast(LightningOptimizer, self.optimizers())
        if self._gradient_clip is not None:
            self.clip_gradients(
                cast(Optimizer, optimizer),
                gradient_clip_val=self._gradient_clip,
                gradient_clip_algorithm="norm",
            )
        optimizer.step()
        self._move_scheduler("step")

    def _move_scheduler(self, when: str) -> None:
        """Moves a scheduler that Lightning does not move."""
        scheduler = self.lr_schedulers()
        if scheduler is None or self._scheduler_settings["interval"] != when:
            return
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(self.trainer.callback_metrics[self._scheduler_settings["monitor"]])
        else:
            cast(LRScheduler, scheduler).step()

    def _check_converging(self, total: Tensor, images: Tensor, presentation: Presentation) -> None:
        """Stops a training whose loss went wrong; on CUDA only at steps that are logged anyway."""
        if total.is_cuda and not self._logs_this_step():
            return
        value = float(total)
        if math.isfinite(value) and value < DIVERGED:
            return
        self.criterion.check_targets()
        trouble = find_trouble(self.model, images, presentation)
        raise TrainingError(
            f"the loss is {value:.4g} at step {self.global_step} (epoch {self.current_epoch}): "
            f"training has diverged; {trouble}. Lower the learning rate, clip the gradient, or "
            "look for such values in the data. The last checkpoint is from before."
        )

    def _note(self, joined: Joined, hits: Tensor, presentation: Presentation) -> None:
        values = {"train_loss": joined.total, "hits": hits}
        for label, value in joined.components.items():
            values[f"loss/{label}"] = value
        supervised = presentation.supervised_mask.sum()
        values["supervised_steps"] = supervised.to(hits.device)
        target = self.target
        if target is not None:
            values[f"energy/{target.unit}"] = target.energy
            values["energy/weight"] = target.weight
        self._state.sums.add(values)
        if self._logs_this_step():
            shown = {k: v for k, v in values.items() if v.ndim == 0 and k != "supervised_steps"}
            self.log_dict({f"{k}_step": v for k, v in shown.items()}, on_step=True)

    def _logs_this_step(self) -> bool:
        return (self.global_step + 1) % max(1, cast(Any, self.trainer).log_every_n_steps) == 0

    def on_train_epoch_end(self) -> None:
        """Logs the means over the epoch."""
        self.criterion.check_targets()
        sums = self._state.sums
        if not sums.n_steps:
            return
        means = {
            name: sums.mean(name)
            for name in sums.values
            if name not in ("hits", "supervised_steps")
        }
        for label, weight in self.criterion.weights.items():
            means[f"loss/{label}_weighted"] = weight * means[f"loss/{label}"]
        self.log_dict({k: v.float() for k, v in means.items()}, prog_bar=False)
        self.log(
            "train_accuracy",
            self._log_accuracies("train", summed(sums.values["hits"])),
            prog_bar=True,
        )
        if self._state.meter is not None:
            budget = joined_budget(self._state.meter)
            self.log_dict(
                {
                    "train_firing_rate": firing_rate(budget),
                    "train_joules": logged_joules(budget, self.profile),
                }
            )
        if self._chunk is not None or isinstance(self.lr_schedulers(), ReduceLROnPlateau):
            self._move_scheduler("epoch")

    def epoch_figures(self) -> EpochFigures:
        """What this epoch showed so far, for `signs`."""
        sums, weights = self._state.sums, self.criterion.weights
        energy, weighted = None, {"ce": 0.0, "energy": 0.0}
        cross_entropy = 0.0
        for (label, weight), loss in zip(weights.items(), self.criterion.losses, strict=True):
            value = float(sums.mean(f"loss/{label}"))
            if isinstance(loss, EnergyLoss):
                energy = value
            elif isinstance(loss, EnergyTarget) and loss.unit == "activity":
                energy = float(sums.mean("energy/activity"))
            elif isinstance(loss, CrossEntropyLoss):
                cross_entropy += value
            kind = "ce" if not cast(BaseLoss, loss).needs_model else "energy"
            weighted[kind] += weight * value
        return EpochFigures(
            cross_entropy=cross_entropy,
            weighted_cross_entropy=weighted["ce"],
            energy=energy,
            weighted_energy=weighted["energy"],
            supervised_steps=float(sums.mean("supervised_steps")),
        )

    # -- validation and test -----------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Starts to measure."""
        self._validation = Validation(self.model, self.criterion, self.presentation)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """One batch, measured; the training's loss, weights and sums are left alone."""
        assert self._validation is not None
        self._validation.step(*_pair(batch))

    def on_validation_epoch_end(self) -> None:
        """Logs what was measured, over the samples of all processes."""
        self._log_validation("val")

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        """Logs the same of the test set."""
        self._log_validation("test")

    def _log_validation(self, stage: str) -> None:
        assert self._validation is not None
        figures = self._validation.finish(self.profile, self.device)
        self._validation = None
        accuracy = self._log_accuracies(stage, figures.hits)
        self.log(f"{stage}_accuracy", accuracy, prog_bar=True)
        self.log_dict({f"{stage}_{name}": value for name, value in figures.scalars().items()})

    def _log_accuracies(self, stage: str, hits: Tensor) -> float:
        """Logs the accuracies by phase; gives that over supervised timesteps."""
        right, counted = hits.tolist()
        shares = {
            phase: right[i] / counted[i] if counted[i] else math.nan
            for i, phase in enumerate(PHASES)
        }
        for phase, share in shares.items():
            self.log(f"{stage}_accuracy/{phase.name.lower()}", share)
        return shares[PHASES[-1]]

    # -- checkpoints -------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what Lightning does not keep: random numbers, the epoch's sums, whose it is."""
        checkpoint["dynvision_snn"] = self._state.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes it back.

        Raises:
            TrainingError: for a checkpoint of another model.
        """
        check_same_model(checkpoint["state_dict"], self.state_dict())
        self._state = TrainingState.from_state_dict(checkpoint.get("dynvision_snn", {}))


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise DataError(
            f"the loader gave a {type(batch).__name__}; expected pairs (images, labels)."
        )
    return batch[0], batch[1]
