"""TimedClassifier: a wrapped model, its presentation and its criterion as a LightningModule.

One class, whose hooks Lightning calls; what they document makes the file long.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from dynvision_snn.energy import EnergyMeter, HardwareProfile, resolve_profile
from dynvision_snn.errors import TrainingError, WrapError
from dynvision_snn.finite import check_parameters
from dynvision_snn.loading import LoadedBatch, check_answers
from dynvision_snn.losses import BaseLoss, Criterion, CrossEntropyLoss, EnergyLoss, build_criterion
from dynvision_snn.model import TimedModel
from dynvision_snn.presentation import Phase
from dynvision_snn.sources import Place, PresentationSource, load
from dynvision_snn.training.diagnosis import find_trouble
from dynvision_snn.training.joining import (
    Joined,
    JoinedLoss,
    joined_budget,
    rank,
    summed,
    world_size,
)
from dynvision_snn.training.lightning.truncation import back_propagate
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

    Batches are (images ``[B, *features]``, labels ``[B]``); or, with `time_axis`, inputs that have
    time themselves and labels per sample or timestep; a third part may be their presentation: as
    everywhere in this package (see `dynvision_snn.sources`). Labels that are no class stop the
    training before a step is taken by them; on a GPU the loss finds those that are supervised.

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
        presentation: the schedule; one for each sample of the loader, in its order, anew in every
            epoch (`PresentationBatch`; one process only); a function of the number of samples and a
            generator, which draws one, or one for each sample, for each batch, as a function of
            (seed, epoch, batch); or None where the loader yields it.
        criterion: as `build_criterion` takes it, `EnergyTarget` instances included; or a
            `Criterion` whose hooks are on `model`.
        validation_presentation: what is shown in validation and test; by default the base of a
            `VaryingPresentation`, or else the same source, of which each validation draws what the
            first epoch does.
        time_axis: where inputs have time themselves, as in `simulate`.
        optimizer: a name in ``torch.optim``, a class, a function of parameters, or an optimizer.
        optimizer_kwargs: its arguments.
        scheduler: likewise, of ``torch.optim.lr_scheduler``; None for a constant learning rate.
        scheduler_kwargs: its arguments.
        scheduler_interval: whether the scheduler moves at every ``"epoch"`` or ``"step"``.
        scheduler_monitor: what a ReduceLROnPlateau looks at.
        profile: hardware profile that joules are logged for.
        truncate: chunks of truncated back-propagation through time, in ms (`TimedModel.chunks`).
            The gradient stops between chunks, and only one chunk's graph is held; the losses of
            the chunks add up to the loss of the run. Validation runs in such chunks, too. Gradients
            are then clipped by `gradient_clip` and not by the Trainer, which does not clip by hand.
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
        presentation: PresentationSource,
        criterion: Criterion | Sequence[Any],
        *,
        validation_presentation: PresentationSource = None,
        time_axis: int | None = None,
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
        self.presentation = presentation
        self.validation_presentation = _validated_by(presentation, validation_presentation)
        self.time_axis = time_axis
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
        self._every = truncate
        self._gradient_clip = gradient_clip
        self.automatic_optimization = truncate is None
        target = self.target
        if truncate is not None and target is not None and target.unit in ("synops", "joules"):
            raise TrainingError(
                f"a limit in {target.unit} is of a whole run, of which truncated "
                "back-propagation sees a chunk at a time; limit 'hertz' or 'activity' instead."
            )
        self._state = TrainingState()
        self._validation: Validation | None = None

    # -- what it is made of ------------------------------------------------------------------------

    @property
    def target(self) -> EnergyTarget | None:
        """The criterion's energy target, if it has one."""
        return energy_target(self.criterion)

    @property
    def readout(self) -> str | None:
        """The layer that was decoded last; None where the model's output is, or before a run."""
        return self._state.readout

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

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Moves inputs and labels; the presentation that came with them stays as it is."""
        if not isinstance(batch, tuple | list):
            return batch
        move = super().transfer_batch_to_device
        return [
            move(part, device, dataloader_idx) if isinstance(part, Tensor) else part
            for part in batch
        ]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """One batch: one run, one loss; with truncation also the optimizer's step."""
        place = Place(
            seed=self.seed,
            epoch=self.current_epoch,
            batch=batch_idx,
            n_before=self._state.n_samples,
            rank=rank(),
            world_size=world_size(),
        )
        loaded = load(batch, self.presentation, self.time_axis, place)
        self._state.n_samples += loaded.n_samples
        if self.target is not None and not self._state.floor_checked:
            self._state.floor_checked = True
            self.target.check_reachable(
                self.model, loaded.inputs, loaded.presentation, loaded.time_axis
            )
        truncated, n_timesteps = self._every is not None, loaded.presentation.n_timesteps
        losses = JoinedLoss(self.criterion, loaded.targets, in_pieces=truncated)
        hits: list[Tensor] = []
        if truncated:
            self.zero_grad()
        with self._metered_once():
            for run in loaded.runs(self.model, self._every):
                check_answers(loaded, run.membrane.shape[-1], wait=False)
                loss = losses(run.membrane, run.steps)
                hits.append(phase_hits(run.membrane, loaded, run.steps))
                self._state.readout = run.readout
                if truncated:
                    back_propagate(self, loss, last=run.steps.stop == n_timesteps)
        joined = losses.whole()
        self._check_converging(joined.total, loaded)
        if truncated:
            self._step_by_hand()
        self._note(joined, torch.stack(hits).sum(0), loaded)
        return None if truncated else loss

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

    def _check_converging(self, total: Tensor, loaded: LoadedBatch) -> None:
        """Stops a training whose loss went wrong; on CUDA only at steps that are logged anyway."""
        if total.is_cuda and not self._logs_this_step():
            return
        value = float(total)
        if math.isfinite(value) and value < DIVERGED:
            return
        self.criterion.check_targets()
        trouble = find_trouble(self.model, loaded)
        raise TrainingError(
            f"the loss is {value:.4g} at step {self.global_step} (epoch {self.current_epoch}): "
            f"training has diverged; {trouble}. Lower the learning rate, clip the gradient, or "
            "look for such values in the data. The last checkpoint is from before."
        )

    def _note(self, joined: Joined, hits: Tensor, loaded: LoadedBatch) -> None:
        values = {"train_loss": joined.total, "hits": hits}
        for label, value in joined.components.items():
            values[f"loss/{label}"] = value
        supervised = loaded.phase_codes == Phase.SUPERVISED
        values["supervised_steps"] = supervised.sum(0, dtype=torch.float64).mean()
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
        check_parameters(self.model.net)
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
        if self._every is not None or isinstance(self.lr_schedulers(), ReduceLROnPlateau):
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
        self._validation = Validation(self.model, self.criterion, self._every)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """One batch, measured; the training's loss, weights and sums are left alone."""
        assert self._validation is not None
        place = Place(
            seed=self.seed,
            batch=batch_idx,
            n_before=self._validation.n_samples,
            rank=rank(),
            world_size=world_size(),
        )
        loaded = load(batch, self.validation_presentation, self.time_axis, place)
        self._validation.step(loaded)

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


def _validated_by(trained: PresentationSource, validated: PresentationSource) -> PresentationSource:
    if validated is None and isinstance(trained, VaryingPresentation):
        return trained.base
    return trained if validated is None else validated
