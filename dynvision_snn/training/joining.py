"""Losses over the processes' shares of a batch, which together give the loss of the whole.

A mean over a share does not add up to the mean over the whole where shares count differently
(unequal numbers of supervised timesteps, a last batch that does not divide): each share's mean is
weighed by its own count over the whole count. DistributedDataParallel takes the mean of the
gradients of `n` processes, so a process weighs by `n` times that. (The chunks of truncated
back-propagation need no such weighing: losses that are told the `whole` run add up by themselves.)
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
from dynvision_snn.errors import LossError
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
    """A criterion's value over the whole of which this process saw a share, detached.

    Attributes:
        total: the loss.
        components: the losses by label, unweighted.
    """

    total: Tensor
    components: Mapping[str, Tensor]


def counts(criterion: Criterion, targets: Tensor) -> Tensor:
    """What each loss's mean divides by, float64 ``[losses]``; 1 for a loss that is a sum.

    A loss of a model takes its mean over samples; one without a mask over all timesteps, too.

    Args:
        criterion: the losses.
        targets: ``[T, B]``.
    """

    def number(value: int | Tensor) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float64, device=targets.device)

    found = []
    for loss in map(_base_loss, criterion.losses):
        if loss.reduction != "mean":
            found.append(number(1))
        elif loss.needs_model:
            found.append(number(targets.shape[1]))
        else:
            valid = loss.count_valid(targets)
            found.append(number(targets.numel() if valid is None else valid))
    return torch.stack(found)


def are_means(criterion: Criterion, device: torch.device) -> Tensor:
    """Which losses are means over their counts, and not sums: bool ``[losses]``."""
    reductions = [_base_loss(loss).reduction for loss in criterion.losses]
    return torch.tensor([reduction == "mean" for reduction in reductions], device=device)


class JoinedLoss:
    """A criterion over a batch that processes share; each may take its share in pieces of a run.

    Every process must build one for each batch, take its loss at least once, and ask for the whole.

    Args:
        criterion: the losses.
        targets: of this process's share, ``[T, B]``.
        in_pieces: whether the run comes in several pieces, one after the other.
    """

    def __init__(self, criterion: Criterion, targets: Tensor, *, in_pieces: bool = False) -> None:
        self._criterion, self._targets = criterion, targets
        self._whole = targets if in_pieces else None
        self._factors = _factors(criterion, targets) if world_size() > 1 else None
        self._sums: dict[str, Tensor] = {}
        self._total: Tensor | None = None

    def __call__(self, outputs: Tensor, steps: slice = slice(None)) -> Tensor:
        """What to back-propagate here, so that the mean over processes is that of the whole.

        Args:
            outputs: ``[t, B, C]``.
            steps: which timesteps of the run these are; by default all.

        Raises:
            LossError: as the criterion does.
        """
        criterion, targets = self._criterion, self._targets[steps]
        if self._factors is None:
            loss = criterion(outputs, targets, whole=self._whole)
            values = criterion.components
        else:
            taken = criterion.values(outputs, targets, whole=self._whole)
            weights = criterion.weights
            loss = torch.stack(
                [
                    weights[label] * world_size() * factor.to(value.dtype) * value
                    for (label, value), factor in zip(taken.items(), self._factors, strict=True)
                ]
            ).sum()
            values = {
                label: value.detach().to(factor) * factor
                for (label, value), factor in zip(taken.items(), self._factors, strict=True)
            }
        self._sums = {label: value + self._sums.get(label, 0) for label, value in values.items()}
        self._total = loss.detach() if self._total is None else self._total + loss.detach()
        return loss

    def whole(self) -> Joined:
        """The losses over all processes and pieces; every process must call it, once.

        Raises:
            LossError: if the loss was not taken yet.
        """
        if self._total is None:
            raise LossError("the loss of this batch was not taken yet; run the model first.")
        if self._factors is None:
            return Joined(self._total, self._sums)
        over_all = summed(torch.stack(list(self._sums.values())))
        components = dict(zip(self._sums, over_all.unbind(), strict=True))
        weights = self._criterion.weights
        total = torch.stack([weights[label] * value for label, value in components.items()]).sum()
        return Joined(total, components)


def _factors(criterion: Criterion, targets: Tensor) -> Tensor:
    """The weight of this process's share of each loss, ``[losses]``."""
    part = counts(criterion, targets)
    whole = torch.where(are_means(criterion, part.device), summed(part), 1.0)
    return part / whole.clamp(min=1e-12)


def joined_budget(meter: EnergyMeter) -> EnergyBudget:
    """The budget of what all processes measured; every process must call it."""
    return meter.all_reduce() if world_size() > 1 else meter.budget()


def _base_loss(loss: torch.nn.Module) -> BaseLoss:
    return cast(BaseLoss, loss)
