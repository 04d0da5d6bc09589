"""Losses over parts of a batch, so that the parts together give the loss of the whole.

The parts are the processes' shares of a global batch, or the chunks of truncated back-propagation,
or both. A mean over a part does not add up to the mean over the whole where parts count
differently (unequal numbers of supervised timesteps, a last batch that does not divide): each
part's mean is weighed by its own count over the whole count. DistributedDataParallel takes the
mean of the gradients of `n` processes, so a process weighs by `n` times that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch import distributed as dist

from dynvision_snn.energy import EnergyBudget, EnergyMeter
from dynvision_snn.losses import BaseLoss, Criterion


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@contextmanager
def ending_processes() -> Iterator[None]:
    """Ends the process group that was started inside, once all processes have come to its end.

    A process that exits while another still talks to it can abort both.
    """
    was_there = dist.is_available() and dist.is_initialized()
    yield
    if world_size() > 1 and not was_there:
        dist.barrier()
        dist.destroy_process_group()


def summed(values: Tensor) -> Tensor:
    """The sum of `values` over all processes, outside the graph."""
    total = values.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def joined_mean(values: Tensor) -> Tensor:
    """The mean of ``[B]`` values over the samples of all processes, outside the graph: 0-dim."""
    values = values.detach()
    if world_size() == 1:
        return values.mean()
    total, count = summed(torch.stack([values.sum(), values.new_tensor(float(len(values)))]))
    return total / count


@dataclass(frozen=True, eq=False, slots=True)
class Joined:
    """A criterion's value over the whole of which this process saw a part.

    Attributes:
        loss: what to back-propagate here: its gradients, averaged over processes, are those of
            the loss of the whole.
        total: the loss of the whole, detached.
        components: the losses of the whole by label, unweighted, detached.
    """

    loss: Tensor
    total: Tensor
    components: Mapping[str, Tensor]


def counts(criterion: Criterion, targets: Tensor) -> Tensor:
    """What each loss's mean divides by, float64 ``[losses]``; 1 for a loss that is a sum.

    A loss without a mask takes its mean over samples and timesteps.

    Args:
        criterion: the losses.
        targets: ``[T, B]``.
    """
    everything = torch.tensor(float(targets.numel()), dtype=torch.float64, device=targets.device)
    found = []
    for loss in map(_base_loss, criterion.losses):
        valid = (
            loss.count_valid(targets) if loss.reduction == "mean" else torch.ones_like(everything)
        )
        found.append(everything if valid is None else valid.to(everything))
    return torch.stack(found)


def joined_loss(
    criterion: Criterion, outputs: Tensor, targets: Tensor, whole: Tensor | None = None
) -> Joined:
    """The criterion over a part, weighed so that parts add up.

    Args:
        criterion: the losses.
        outputs: of this part, ``[T, B, C]``.
        targets: of this part, ``[T, B]``.
        whole: `counts` of everything that this process is going to see of the batch, where this
            is only a chunk of it.

    Raises:
        LossError: as the criterion does.
    """
    processes = world_size()
    if processes == 1 and whole is None:
        loss = criterion(outputs, targets)
        return Joined(loss, loss.detach(), criterion.components)
    values = criterion.values(outputs, targets)
    part = counts(criterion, targets)
    is_mean = torch.tensor(
        [_base_loss(loss).reduction == "mean" for loss in criterion.losses], device=part.device
    )
    total_count = torch.where(is_mean, summed(part if whole is None else whole), 1.0)
    share = part / total_count.clamp(min=1e-12)
    detached = torch.stack([value.detach().to(part) for value in values.values()])
    over_all = summed(detached * share)
    weights = criterion.weights
    loss = torch.stack(
        [
            weights[label] * processes * factor.to(value.dtype) * value
            for (label, value), factor in zip(values.items(), share, strict=True)
        ]
    ).sum()
    components = dict(zip(values, over_all.unbind(), strict=True))
    total = torch.stack([weights[label] * value for label, value in components.items()]).sum()
    return Joined(loss, total, components)


def joined_budget(meter: EnergyMeter) -> EnergyBudget:
    """The budget of what all processes measured; every process must call it."""
    return meter.all_reduce() if world_size() > 1 else meter.budget()


def _base_loss(loss: torch.nn.Module) -> BaseLoss:
    return cast(BaseLoss, loss)
