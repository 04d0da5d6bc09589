"""The plain training loop: every batch is one run, one loss, one step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dynvision_snn.errors import LossError
from dynvision_snn.loading import arrange
from dynvision_snn.losses import Criterion
from dynvision_snn.model import TimedModel
from dynvision_snn.presentation_batch import AnyPresentation


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
    loader: Iterable[tuple[Tensor, Tensor]],
    presentation: AnyPresentation,
    criterion: Criterion,
    optimizer: Optimizer,
    *,
    epochs: int,
    time_axis: int | None = None,
    scheduler: LRScheduler | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> list[Epoch]:
    """Trains a wrapped model.

    Args:
        model: the model; trained in place, left in training mode.
        loader: batches of images ``[B, *features]`` and labels ``[B]``; iterated once per epoch.
        presentation: the schedule that every batch is shown by; a `PresentationBatch` is of every
            batch's samples in their order.
        criterion: from `build_criterion`, its hooks on `model`.
        optimizer: over the model's parameters.
        epochs: how often the loader is run through.
        time_axis: as in `simulate`, for a loader whose inputs have time themselves.
        scheduler: of the learning rate, stepped after each epoch.
        on_epoch: called after each epoch.

    Returns:
        one `Epoch` each.

    Raises:
        LossError: if the loss is NaN or infinite, or the loader is empty.
        DataError, PresentationError: if what the loader yields does not fit.
    """
    model.train()
    device = next(model.parameters()).device
    history: list[Epoch] = []
    for number in range(1, epochs + 1):
        values: list[Tensor] = []
        for batch in loader:
            loaded = arrange(batch, presentation, time_axis).to(device)
            run = model(loaded.inputs, presentation, time_axis=loaded.time_axis)
            loss = criterion(run.membrane, loaded.targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(torch.stack([loss.detach(), *criterion.components.values()]))
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
        if scheduler is not None:
            scheduler.step()
        history.append(epoch)
        if on_epoch is not None:
            on_epoch(epoch)
    return history
