"""The plain training loop: every batch is one run, one loss, one step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dynvision_snn.errors import LossError
from dynvision_snn.finite import check_parameters
from dynvision_snn.loading import LoadedBatch, check_answers, device_of
from dynvision_snn.losses import Criterion
from dynvision_snn.model import TimedModel
from dynvision_snn.sources import PresentationSource, loaded_batches


@dataclass(frozen=True, slots=True)
class Epoch:
    """Means over the batches of one epoch.

    Attributes:
        number: from 1 up.
        loss: the criterion's value, by which the weights moved.
        components: the losses by label, unweighted.
    """

    number: int
    loss: float
    components: dict[str, float]


def fit(
    model: TimedModel,
    loader: Iterable[Any],
    presentation: PresentationSource,
    criterion: Criterion,
    optimizer: Optimizer,
    *,
    epochs: int,
    time_axis: int | None = None,
    truncate: float | None = None,
    seed: int = 0,
    scheduler: LRScheduler | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> list[Epoch]:
    """Trains a wrapped model.

    Args:
        model: the model; trained in place, left in training mode.
        loader: batches of images ``[B, *features]`` and labels ``[B]``, as in `simulate`; iterated
            once per epoch.
        presentation: the schedule; one for each sample of the loader, in its order, anew in every
            epoch (`PresentationBatch`); a function of the number of samples and a generator, which
            draws one, or one for each sample, for each batch (a `VaryingPresentation` is one); or
            None where the loader yields it as the third part of every batch.
        criterion: from `build_criterion`, its hooks on `model`.
        optimizer: over the model's parameters.
        epochs: how often the loader is run through.
        time_axis: as in `simulate`, for a loader whose inputs have time themselves.
        truncate: chunks of truncated back-propagation through time, in ms (`TimedModel.chunks`):
            the gradient stops between chunks, and only one chunk's graph is held; the losses of the
            chunks add up to the loss of the run.
        seed: of the draws, which depend on it, the epoch (from 0) and the number of the batch.
        scheduler: of the learning rate, stepped after each epoch.
        on_epoch: called after each epoch.

    Returns:
        one `Epoch` each.

    Raises:
        LossError: if the loss is NaN or infinite, or the loader is empty.
        DataError, PresentationError: if what the loader yields does not fit, or a label is no class
            of the model (of labels on a GPU the loss tells, later).
        ObservationError: if a parameter, or a running mean or variance, is NaN at the end of an
            epoch, which spikes can hide from the loss.
    """
    model.train()
    device = device_of(model)
    history: list[Epoch] = []
    for number in range(1, epochs + 1):
        values: list[Tensor] = []
        batches = loaded_batches(loader, presentation, time_axis, seed=seed, epoch=number - 1)
        for loaded in batches:
            optimizer.zero_grad()
            values.append(_back_propagated(model, loaded, device, criterion, truncate))
            optimizer.step()
        if not values:
            raise LossError(f"the loader gave no batch in epoch {number}; expected at least one.")
        total, *components = torch.stack(values).mean(0).tolist()
        criterion.check_targets()
        epoch = Epoch(number, total, dict(zip(criterion.components, components, strict=True)))
        if not torch.isfinite(torch.tensor(total)):
            raise LossError(
                f"the loss is {total} in epoch {number} ({epoch.components}): training has "
                "diverged. Lower the learning rate, or clip the gradient."
            )
        check_parameters(model.net)
        if scheduler is not None:
            scheduler.step()
        history.append(epoch)
        if on_epoch is not None:
            on_epoch(epoch)
    return history


def _back_propagated(
    model: TimedModel,
    loaded: LoadedBatch,
    device: torch.device,
    criterion: Criterion,
    truncate: float | None,
) -> Tensor:
    """Sets the gradients of a batch; its loss and the criterion's components, ``[1 + losses]``."""
    on_device = loaded.to(device)
    targets = on_device.targets
    whole = None if truncate is None else targets
    pieces = []
    for run in on_device.runs(model, truncate):
        # Before they are moved, so that no device is waited for.
        check_answers(loaded, run.membrane.shape[-1], wait=False)
        loss = criterion(run.membrane, targets[run.steps], whole=whole)
        loss.backward()
        pieces.append(torch.stack([loss.detach(), *criterion.components.values()]))
    return torch.stack(pieces).sum(0)
